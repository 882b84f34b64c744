// The page: asks the server for the conformers of a molecule, shows them, and lets the visitor choose among them.

import { Player } from "./player.js";
import { StructureView } from "./viewer.js";

const element = (id) => document.getElementById(id);
const view = new StructureView(element("viewer"));
const player = new Player(drawFrame);
const WITHOUT_WEBGL = "This browser has no WebGL to draw structures with; numbers and files work.";
const reducedMotion = window.matchMedia("(prefers-reduced-motion: reduce)");

if (!view.available) {
  element("doing").textContent = WITHOUT_WEBGL;
}

let molecule = null; // the server's "molecule" event
let conformers = []; // those of its "result" event
let chosen = 0; // the conformer that is shown
let request = null; // aborts the prediction that runs
const task = { doing: "", start: 0 }; // what is under way, and since when

// --- Asking -----------------------------------------------------------------------------------------------------------

async function predict(smiles, numConformers) {
  request?.abort();
  request = new AbortController();
  const { signal } = request;
  clearResult();
  setDoing("Asking");
  try {
    const response = await fetch("predict", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ smiles, num_conformers: numConformers }),
      signal,
    });
    if (!response.ok) {
      const answer = await response.json().catch(() => ({ error: "The server is busy; try again in a moment." }));
      throw new Error(answer.error);
    }
    for await (const event of events(response.body)) handleEvent(event, numConformers);
    if (conformers.length === 0) throw new Error("The prediction broke off; try again.");
  } catch (error) {
    if (signal.aborted) return;
    showError(error instanceof TypeError ? "The server cannot be reached." : error.message);
  }
  setDoing("");
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

function handleEvent(event, numConformers) {
  if (event.type === "waiting") setDoing(`Waiting, ${event.ahead} ahead of you`);
  if (event.type === "error") throw new Error(event.message);
  if (event.type === "molecule") {
    molecule = event;
    setDoing(`RDKit makes ${counted(numConformers, "conformer")} of ${event.symbols.length} atoms`);
  }
  if (event.type === "progress") setDoing("The model refines them", event.step / event.num_steps);
  if (event.type === "result") showResult(event, numConformers);
}

// --- The structure ----------------------------------------------------------------------------------------------------

// What the player shows now; beside the last frame is what there is to compare with it.
function drawFrame(positions, index, isLast) {
  const last = conformers[chosen].frames.length - 1;
  view.setPositions(positions);
  element("step").value = index;
  element("step-text").textContent = isLast ? "refined" : index === 0 ? "RDKit" : `step ${index} of ${last}`;
  if (isLast) drawOverlays();
}

function drawOverlays() {
  const shown = (id) => element(id).checked && !element(id).parentElement.hidden;
  const { frames, forces, reference } = conformers[chosen];
  view.setBeyond(shown("show-beyond") ? molecule.beyond : []);
  view.setOverlays({
    positions: frames.at(-1),
    forces: shown("show-forces") ? forces : [],
    reference: shown("show-reference") ? reference : null,
    others: shown("show-all") ? conformers.filter((_, i) => i !== chosen).map((other) => other.frames.at(-1)) : [],
  });
}

// --- The result -------------------------------------------------------------------------------------------------------

function showResult(event, numConformers) {
  conformers = event.conformers;
  chosen = 0;
  const [lowest] = conformers;
  setFormula(element("formula"), molecule.formula);
  element("canonical").textContent = molecule.smiles;
  element("level").textContent = molecule.level_of_theory;
  element("reference-level").textContent = molecule.reference_level_of_theory ?? "";
  element("viewer").setAttribute("aria-label", `Structure of ${molecule.formula}; arrow keys turn it, plus and minus zoom`);
  element("notes").replaceChildren(...molecule.notes.map((note) => make("li", note)));
  const found = counted(conformers.length, "distinct conformer");
  element("found").textContent = conformers.length > 1 ? `${found}, lowest energy first` : found;
  element("conformer-list").replaceChildren(...conformers.map(conformerChoice));
  element("cost").textContent = `From ${counted(numConformers, "conformer")} of RDKit, in ${number(event.seconds, 1)} seconds.`;
  element("download-all").hidden = element("all-toggle").hidden = conformers.length === 1;
  element("beyond-toggle").hidden = molecule.beyond.length === 0;
  const withReference = lowest.reference !== null;
  document.querySelectorAll(".with-reference").forEach((part) => { part.hidden = !withReference; });
  element("reference-toggle").hidden = !withReference;
  for (const id of ["toggles", "player"]) element(id).hidden = !view.available;
  for (const id of ["numbers", "molecule"]) element(id).hidden = false;
  element("placeholder").hidden = view.available;
  element("step").max = lowest.frames.length - 1;
  view.setMolecule(molecule.symbols, molecule.bonds, lowest.frames.at(-1));
  choose(0);
  if (view.available && !reducedMotion.matches) player.play();
  say(`Predicted ${molecule.formula}: ${found}, lowest energy ${number(lowest.energy, 3)} electronvolt.`);
}

function conformerChoice(conformer, i) {
  const input = make("input");
  Object.assign(input, { type: "radio", name: "conformer", value: i, checked: i === 0 });
  input.addEventListener("change", () => choose(i));
  const label = make("label");
  const weight = number(100 * conformer.boltzmann_weight, 0);
  label.append(
    input,
    make("span", `${i + 1}`),
    make("span", `+${number(conformer.relative_energy, 2)} kcal/mol`, "value"),
    make("span", `${weight}%`, "value weight"),
  );
  return label;
}

// Show a conformer: its numbers, and its refined structure.
function choose(i) {
  chosen = i;
  const { energy, forces, frames, moved, reference } = conformers[i];
  const largest = Math.max(...forces.map((force) => Math.hypot(...force)));
  element("energy").textContent = number(energy, 3);
  element("moved").textContent = number(moved, 3);
  element("largest-force").textContent = number(largest, 2);
  if (reference) {
    element("rmsd").textContent = number(reference.rmsd, 3);
    element("rmsd-atoms").textContent = reference.rmsd_atoms;
    element("energy-above").textContent = number(reference.energy_above, 2);
  }
  player.frames = frames;
  player.show(frames.length - 1);
}

function download(name, chosenConformers) {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob(chosenConformers.map((conformer) => conformer.sdf), { type: "chemical/x-mdl-sdfile" }));
  link.download = `${molecule.formula.replace(/[^\w+-]/g, "")}${name}.sdf`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// --- Small parts of the page ------------------------------------------------------------------------------------------

function clearResult() {
  player.stop();
  view.clear();
  conformers = [];
  showError("");
  for (const id of ["numbers", "molecule", "toggles", "player"]) element(id).hidden = true;
  element("placeholder").hidden = false;
}

// What the page says while a prediction is under way, and how much of it is done if that is known; nothing when it is over.
function setDoing(doing, share = null) {
  if (doing !== task.doing) say(doing && `${doing}.`);
  if (!task.doing) task.start = performance.now();
  task.doing = doing;
  document.querySelector("main").setAttribute("aria-busy", Boolean(doing));
  element("predict").textContent = doing ? "Predicting…" : "Predict";
  element("progress").hidden = !doing;
  if (share === null) element("progress").removeAttribute("value");
  else element("progress").value = share;
  showTask();
}

function showTask() {
  const seconds = Math.floor((performance.now() - task.start) / 1000);
  const idle = view.available ? "" : WITHOUT_WEBGL;
  element("doing").textContent = task.doing ? `${task.doing}: ${seconds} s` : idle;
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

function counted(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
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

// --- The model --------------------------------------------------------------------------------------------------------

async function showModel() {
  const { name, facts } = await (await fetch("model")).json();
  element("model-name").textContent = name;
  element("facts").replaceChildren(...facts.map(([term, text]) => {
    const fact = make("div");
    fact.append(make("dt", term), make("dd", text, "fact"));
    return fact;
  }));
  element("about").hidden = false;
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
  predict(element("smiles").value, Number(element("num-conformers").value));
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
for (const id of ["show-beyond", "show-all", "show-forces", "show-reference"]) element(id).addEventListener("change", () => player.show(player.frames.length - 1));
element("download").addEventListener("click", () => download(conformers.length > 1 ? `-conformer-${chosen + 1}` : "", [conformers[chosen]]));
element("download-all").addEventListener("click", () => download("-conformers", conformers));
setInterval(() => task.doing && showTask(), 500);
showModel();
