"use strict";
// Preference: left, right, no difference, undo. The page does not know which set a picture is from.

function show(state) {
  const open = state.caption !== null && !state.finished;
  by("count").textContent = `${state.position} of ${state.total} answered (${state.participant})`;
  by("review").hidden = !open;
  by("done").hidden = open;
  by("undo").disabled = by("undo-last").disabled = !state.position;
  if (open) showPair(state);
  else showEnd(state);
}

function showPair({ caption, position, total }) {
  by("caption").textContent = caption;
  for (const side of ["left", "right"]) {
    place(by(`${side}-picture`), `${position}/${side}`, `the ${side} picture`);
    if (position + 1 < total) new Image().src = pictureAddress(`${position + 1}/${side}`);
  }
}

function showEnd(state) {
  by("done-title").textContent = state.finished ? "Finished, thank you" : "Every pair is answered";
  by("then").textContent = state.finished
    ? "This page can be closed."
    : "The last answers can still be undone.";
  by("last").hidden = state.finished;
  by("done-title").focus();
}

const answer = (kind, said) => () => { if (!by("review").hidden) act({ do: kind }, said); };
const left = answer("left", "Left"), right = answer("right", "Right"), tie = answer("tie", "No difference");
const undo = () => { if (current?.position && !current.finished) act({ do: "undo" }, "Undone: answer again"); };
const finish = () => { if (!by("done").hidden) act({ do: "finish" }); };

for (const [id, action] of Object.entries({ left, right, tie, undo, "undo-last": undo, finish })) {
  by(id).addEventListener("click", action);
}
onKeys({ ArrowLeft: left, ArrowRight: right, ArrowDown: tie, u: undo, Enter: finish });
begin();
