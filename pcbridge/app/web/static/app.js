// The page: asks the server for a prediction, shows it as it arrives, and lets the visitor choose among its samples.

import { Player } from "./player.js";
import { StructureView } from "./viewer.js";

const element = (id) => document.getElementById(id);
const view = new StructureView(element("viewer"));
const player = new Player(drawFrame);
const reducedMotion = window.matchMedia("(prefers-reduced-motion: reduce)");

if (!view.available) {
  element("placeholder").textContent = "This browser has no WebGL to draw structures with; numbers and files work.";
}

let molecule = null; // the server's "molecule" event
let samples = []; // those of its "result" event
let chosen = 0; // the sample that is shown
let request = null; // aborts the prediction that runs

// --- Asking -----------------------------------------------------------------------------------------------------------

async function predict(smiles, numSamples) {
  request?.abort();
  request = new AbortController();
  const { signal } = request;
  clearResult();
  setBusy("Predicting…");
  try {
    const response = await fetch("predict", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ smiles, num_samples: numSamples }),
      signal,
    });
    if (!response.ok) {
      const answer = await response.json().catch(() => ({ error: "The server is busy; try again in a moment." }));
      throw new Error(answer.error);
    }
    for await (const event of events(response.body)) handleEvent(event);
    if (samples.length === 0) throw new Error("The prediction broke off; try again.");
  } catch (error) {
    if (signal.aborted) return;
    showError(error instanceof TypeError ? "The server cannot be reached." : error.message);
  }
  setBusy("");
}

// The JSON objects of a stream that has one a line.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    yield* lines.map((line) => JSON.parse(line));
  }
}

function handleEvent(event) {
  if (event.type === "waiting" && event.ahead > 0) {
    setBusy("Waiting…");
    say("Other visitors' predictions come first.");
  }
  if (event.type === "error") throw new Error(event.message);
  if (event.type === "molecule") startMolecule(event);
  if (event.type === "step") addStep(event);
  if (event.type === "result") showResult(event.samples);
}

// --- The structure ----------------------------------------------------------------------------------------------------

function startMolecule(event) {
  molecule = event;
  setBusy("Predicting…");
  say(`Predicting ${event.formula}.`);
  element("step").max = event.num_steps;
}

function addStep({ step, positions }) {
  if (step === 0 && player.frames.length === 0) {
    element("placeholder").hidden = view.available;
    element("player").hidden = !view.available;
    view.setMolecule(molecule.symbols, molecule.bonds, positions);
    if (view.available && !reducedMotion.matches) player.play();
  }
  player.frames[step] = positions;
}

// What the player shows now; the last frame gets its forces and reference.
function drawFrame(positions, index, isLast) {
  view.setPositions(positions);
  element("step").value = index;
  element("step-text").textContent = `step ${index} of ${molecule.num_steps}`;
  if (isLast) drawOverlays();
}

function drawOverlays() {
  const sample = samples[chosen];
  const forces = element("show-forces").checked ? sample.forces : null;
  const reference = element("show-reference").checked ? sample.reference : null;
  view.setOverlays(sample.frames.at(-1), forces, reference);
}

// --- The result -------------------------------------------------------------------------------------------------------

function showResult(newSamples) {
  samples = newSamples;
  setFormula(element("formula"), molecule.formula);
  element("canonical").textContent = molecule.smiles;
  element("level").textContent = molecule.level_of_theory;
  element("reference-level").textContent = molecule.reference_level_of_theory ?? "";
  element("viewer").setAttribute("aria-label", `Structure of ${molecule.formula}; arrow keys turn it, plus and minus zoom`);
  const notes = [...molecule.notes];
  const others = new Set(samples.map((sample) => sample.origin).filter(Boolean));
  for (const origin of others) notes.push(`Some samples of the model were no sound structures; instead there is: ${origin}.`);
  element("notes").replaceChildren(...notes.map((note) => make("li", note)));
  element("sample-list").replaceChildren(...samples.map(sampleChoice));
  element("samples").hidden = element("download-all").hidden = samples.length === 1;
  const withReference = samples[0].reference !== null;
  document.querySelectorAll(".with-reference").forEach((part) => { part.hidden = !withReference; });
  element("reference-toggle").hidden = !withReference;
  element("toggles").hidden = !view.available;
  for (const id of ["numbers", "molecule"]) element(id).hidden = false;
  view.setPositions(samples[0].frames.at(-1)); // where the molecule will end is what has to fit
  view.fit();
  choose(0);
  say(`Predicted ${molecule.formula}: lowest energy ${number(samples[0].energy, 3)} electronvolt.`);
}

function sampleChoice(sample, i) {
  const input = make("input");
  Object.assign(input, { type: "radio", name: "sample", value: i, checked: i === 0 });
  input.addEventListener("change", () => choose(i));
  const label = make("label");
  const energy = i === 0 ? "lowest" : `+${number(sample.relative_energy, 3)} eV`;
  label.append(input, make("span", `Sample ${i + 1}`), make("span", energy, "value"));
  return label;
}

// Show a sample: its numbers at once, its structure too unless a denoising is playing, which goes on as this one's.
function choose(i) {
  chosen = i;
  const sample = samples[i];
  const largest = Math.max(...sample.forces.map((force) => Math.hypot(...force)));
  element("energy").textContent = number(sample.energy, 3);
  element("largest-force").textContent = number(largest, 2);
  if (sample.reference) {
    element("rmsd").textContent = number(sample.reference.rmsd, 3);
    element("rmsd-atoms").textContent = sample.reference.rmsd_atoms;
    element("energy-above").textContent = number(sample.reference.energy_above, 3);
  }
  player.frames = sample.frames;
  player.finished = true;
  if (!player.playing) player.show(sample.frames.length - 1);
}

function download(name, chosenSamples) {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob(chosenSamples.map((sample) => sample.sdf), { type: "chemical/x-mdl-sdfile" }));
  link.download = `${molecule.formula.replace(/[^\w+-]/g, "")}${name}.sdf`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// --- Small parts of the page ------------------------------------------------------------------------------------------

function clearResult() {
  player.stop();
  samples = [];
  showError("");
  for (const id of ["numbers", "molecule", "toggles"]) element(id).hidden = true;
}

// What the button says while a prediction is under way; nothing when it is over.
function setBusy(doing) {
  element("predict").textContent = doing || "Predict";
  document.querySelector("main").setAttribute("aria-busy", Boolean(doing));
}

function showError(message) {
  element("error").textContent = message;
  element("error").hidden = !message;
  if (message) element("smiles").setAttribute("aria-invalid", "true");
  else element("smiles").removeAttribute("aria-invalid");
}

function say(message) {
  element("status").textContent = message;
}

function make(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function number(value, digits) {
  const format = { minimumFractionDigits: digits, maximumFractionDigits: digits, signDisplay: "negative" };
  return new Intl.NumberFormat("en", format).format(value).replace("-", "−");
}

// A formula such as C6H6O or C2H6NO2+, its counts lowered and its charge raised.
function setFormula(target, formula) {
  const [, atoms, charge] = formula.match(/^(.*?)([+-]\d*)?$/);
  const parts = atoms.match(/[A-Za-z]+|\d+/g).map((part) => (/\d/.test(part) ? make("sub", part) : part));
  target.replaceChildren(...parts, ...(charge ? [make("sup", charge.replace("-", "−"))] : []));
}

// --- Drawing a molecule -----------------------------------------------------------------------------------------------

let chemistry = null; // OpenChemLib, loaded when first needed
let canvas = null;

async function openEditor() {
  chemistry ??= await import("./vendor/openchemlib.js");
  element("editor").showModal();
  canvas ??= new chemistry.CanvasEditor(element("canvas"));
  try {
    canvas.setMolecule(chemistry.Molecule.fromSmiles(element("smiles").value));
  } catch {
    canvas.clearAll();
  }
}

function closeEditor() {
  if (element("editor").returnValue !== "use") return;
  element("smiles").value = canvas.getMolecule().toIsomericSmiles();
  element("form").requestSubmit();
}

// --- What the visitor does --------------------------------------------------------------------------------------------

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  predict(element("smiles").value, Number(element("num-samples").value));
});
for (const button of document.querySelectorAll("[data-smiles]")) {
  button.addEventListener("click", () => {
    element("smiles").value = button.dataset.smiles;
    element("form").requestSubmit();
  });
}
element("draw").addEventListener("click", openEditor);
element("editor").addEventListener("close", closeEditor);
element("play").addEventListener("click", () => player.play());
element("step").addEventListener("input", (event) => player.show(Number(event.target.value)));
for (const id of ["show-forces", "show-reference"]) element(id).addEventListener("change", () => player.show(player.frames.length - 1));
element("download").addEventListener("click", () => download(samples.length > 1 ? `-sample-${chosen + 1}` : "", [samples[chosen]]));
element("download-all").addEventListener("click", () => download("-samples", samples));
