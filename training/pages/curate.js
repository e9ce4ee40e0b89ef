"use strict";
// Curation: accept, reject, correct the caption, undo.

const share = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(1)} %` : "-");

function show(state) {
  const { accept, edit, reject } = state.counts, decided = state.position;
  by("blind").hidden = !state.blind;
  by("count").textContent =
    `${decided} of ${state.total} decided: ${accept} accepted, ${edit} corrected, ${reject} rejected`;
  by("review").hidden = !state.record || state.finished;
  by("done").hidden = Boolean(state.record) && !state.finished;
  stopWriting();
  by("undo").disabled = by("undo-last").disabled = !decided;
  if (state.record) showRecord(state);
  if (!by("done").hidden) showEnd(state, reject, edit);
}

function showRecord({ record, position, total }) {
  by("number").textContent = `Record ${position + 1} of ${total}`;
  by("caption").textContent = record.caption;
  place(by("picture"), position, `picture ${position + 1}`);
  if (position + 1 < total) new Image().src = pictureAddress(position + 1);
  const rows = { "made by": record.from, "caption by": record.source, "asked for": record.attributes };
  by("facts").replaceChildren(...Object.entries(rows).filter(([, value]) => value).flatMap(([name, value]) => {
    const pair = [document.createElement("dt"), document.createElement("dd")];
    pair[0].textContent = name;
    pair[1].textContent = value;
    return pair;
  }));
}

function showEnd(state, reject, edit) {
  by("done-title").textContent = state.finished ? "Finished" : "Every record is decided";
  by("rates").textContent =
    `Removed ${share(reject, state.position)} of ${state.position}, corrected ${share(edit, state.position)}.`;
  by("then").textContent = state.finished
    ? "The command in the terminal writes the variant now. This page can be closed."
    : "Nothing is written yet: the last decisions can still be undone.";
  by("last").hidden = state.finished;
  by("done-title").focus();
}

function startWriting() {
  by("writing").hidden = false;
  by("caption").hidden = by("decide").hidden = true;
  by("text").value = current.record.caption;
  by("text").focus();
}

function stopWriting() {
  by("writing").hidden = true;
  by("caption").hidden = by("decide").hidden = false;
  if (document.activeElement === by("text")) by("text").blur();
}

const reviewing = (action) => () => { if (!by("review").hidden && by("writing").hidden) action(); };
const accept = reviewing(() => act({ do: "accept" }, "Accepted"));
const reject = (cause, said) => reviewing(() => act({ do: "reject", cause }, `Rejected: ${said}`));
const undo = () => { if (current?.position && !current.finished && by("writing").hidden) act({ do: "undo" }, "Undone: decide again"); };
const finish = () => { if (!by("done").hidden) act({ do: "finish" }); };
const keep = () => act({ do: "edit", caption: by("text").value }, "Accepted with this caption");
const edit = reviewing(startWriting);
const keys = { a: accept, e: edit, u: undo, Enter: finish, r: reject("artefact", "artefact") };

by("accept").addEventListener("click", accept);
by("edit").addEventListener("click", edit);
by("keep").addEventListener("click", keep);
by("leave").addEventListener("click", stopWriting);
by("undo").addEventListener("click", undo);
by("undo-last").addEventListener("click", undo);
by("finish").addEventListener("click", finish);
document.querySelectorAll("[data-cause]").forEach((button, i) => {
  const decide = reject(button.dataset.cause, button.firstChild.textContent.trim().toLowerCase());
  button.addEventListener("click", decide);
  keys[i + 1] = decide;
});
by("text").addEventListener("keydown", (event) => {
  if (event.key === "Escape") stopWriting();
  else if (event.key === "Enter" && !event.isComposing) keep();
  else return;
  event.preventDefault();
  event.stopPropagation();
});
onKeys(keys);
begin();
