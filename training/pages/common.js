"use strict";
// Asks the local server, which knows this page by the token after # in its address; shows one state after another.

const token = location.hash.slice(1);
const by = (id) => document.getElementById(id);
let current = null, waiting = false;

async function ask(path, body) {
  const options = { headers: { "X-Npusim-Token": token } };
  if (body) Object.assign(options, { method: "POST", body: JSON.stringify(body) }), (options.headers["Content-Type"] = "application/json");
  const answer = await fetch(path, options);
  return answer.json();
}

const pictureAddress = (name) => `/picture/${name}?token=${encodeURIComponent(token)}`;

/** Put a picture in its place; enlarged pixels of a small one stay sharp. */
function place(image, name, text) {
  image.alt = text;
  image.onload = () => image.classList.toggle("small", image.naturalWidth < 128);
  if (image.getAttribute("src") !== pictureAddress(name)) image.src = pictureAddress(name);
}

function say(text, refused) {
  by("said").textContent = text;
  by("said").classList.toggle("refused", Boolean(refused));
}

/** Show a state, and in it what the server refused. */
function take(state, said) {
  if (state.total === undefined) return say(state.refused ?? "the server's answer cannot be read", true);
  current = state;
  by("progress").max = state.total;
  by("progress").value = state.position;
  document.documentElement.dataset.position = state.position;
  show(state);
  if (state.finished) document.documentElement.dataset.finished = "yes";
  say(state.refused ?? said ?? "", Boolean(state.refused));
  document.documentElement.dataset.ready = "yes";
}

/** One decision at a time: keys pressed while one is being written are dropped. */
async function act(body, said) {
  if (waiting || !current || current.finished) return;
  waiting = true;
  try {
    take(await ask("/act", { ...body, position: current.position }), said);
  } catch {
    say("The command in the terminal has ended. What was decided is kept; run it again to go on.", true);
  } finally {
    waiting = false;
  }
}

async function begin() {
  try {
    take(await ask("/state"));
  } catch {
    say("The command in the terminal has ended. What was decided is kept; run it again to go on.", true);
  }
}

/** Keys of the page: not while writing, nor with Ctrl, Alt or Meta. */
function onKeys(keys) {
  document.addEventListener("keydown", (event) => {
    const writing = event.target.closest?.("textarea");
    if (writing || event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
    const pressed = event.target.closest?.("button") && ["Enter", " "].includes(event.key);
    const found = pressed ? null : keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (found) { event.preventDefault(); found(); }
  });
}
