// The molecule in 3D, by 3Dmol.js. Where there is no WebGL every method does nothing and `available` is false.

const FORCE_LENGTH = 2; // angstrom drawn for 1 eV/angstrom, as the page says
const FORCE_START = 0.3; // angstrom from the nucleus, about where the sphere ends
const SMALLEST_FORCE = 0.05; // eV/angstrom; arrows of smaller ones would be dots
// Jmol's colours, a little softer, and hydrogen darker to show on white.
const map = {
  H: "#d4d9df", C: "#8b929b", N: "#4a67e0", O: "#e0453c", F: "#5fb83c",
  P: "#e08a2e", S: "#d8b62a", Cl: "#2fa84f", Br: "#a0442e", I: "#8040a8",
};
const colorscheme = { prop: "elem", map };
const STYLE = { stick: { radius: 0.11, colorscheme }, sphere: { scale: 0.2, colorscheme } };

export class StructureView {
  constructor(element) {
    this.element = element;
    this.viewer = null;
    try {
      this.viewer = window.$3Dmol.createViewer(element, { antialias: true });
    } catch { /* no WebGL */ }
    if (!this.available) return;
    this.#setBackground();
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#setBackground());
    element.addEventListener("keydown", (event) => this.#onKey(event));
  }

  get available() {
    return Boolean(this.viewer);
  }

  // Draw nothing.
  clear() {
    if (!this.available) return;
    this.viewer.clear();
    this.others = [];
    this.viewer.render();
  }

  // A molecule of `symbols`, with `bonds` [first, second, order], at `positions`.
  setMolecule(symbols, bonds, positions) {
    if (!this.available) return;
    this.viewer.resize();
    this.clear();
    Object.assign(this, { symbols, bonds, beyond: [] });
    this.model = this.#addModel(symbols, bonds, positions, STYLE);
    this.fit();
  }

  // Mark the atoms with these numbers.
  setBeyond(beyond) {
    this.beyond = beyond;
  }

  // Move the atoms to `positions`; nothing else is drawn beside them.
  setPositions(positions) {
    if (!this.available) return;
    this.#removeOverlays();
    this.model.selectedAtoms({}).forEach((atom, i) => {
      [atom.x, atom.y, atom.z] = positions[i];
    });
    this.#setStyle();
    this.viewer.render();
  }

  // Draw, beside the atoms at `positions`, forces as arrows, a reference { symbols, bonds, positions } as a halo if there
  // is one, and other structures of the molecule as thin lines.
  setOverlays({ positions, forces, reference, others }) {
    if (!this.available) return;
    this.#removeOverlays();
    this.#setStyle();
    forces.forEach((force, i) => this.#addArrow(positions[i], force));
    if (reference) {
      const stick = { radius: 0.2, color: this.#colour("--reference"), opacity: 0.55 };
      this.others.push(this.#addModel(reference.symbols, reference.bonds, reference.positions, { stick }));
    }
    const stick = { radius: 0.04, color: this.#colour("--others") };
    for (const other of others) this.others.push(this.#addModel(this.symbols, this.bonds, other, { stick }));
    for (const i of this.beyond) this.#addLabel(`${this.symbols[i]}${i}`, positions[i]);
    this.viewer.render();
  }

  // Turn the camera to where the atoms are now, with little margin.
  fit() {
    this.viewer?.zoomTo();
    const isWide = this.element.clientWidth > this.element.clientHeight;
    this.viewer?.zoom(isWide ? 1.1 : 1);
  }

  #addModel(symbols, bonds, positions, style) {
    const atoms = symbols.map((elem, i) => {
      const [x, y, z] = positions[i];
      return { elem, x, y, z, bonds: [], bondOrder: [] };
    });
    for (const [first, second, order] of bonds) {
      for (const [i, j] of [[first, second], [second, first]]) {
        atoms[i].bonds.push(j);
        atoms[i].bondOrder.push(order);
      }
    }
    const model = this.viewer.addModel();
    model.addAtoms(atoms);
    model.setStyle({}, style);
    return model;
  }

  #addArrow([x, y, z], force) {
    const size = Math.hypot(...force);
    if (size < SMALLEST_FORCE) return;
    const point = (distance) => {
      const [dx, dy, dz] = force.map((part) => (part / size) * distance);
      return { x: x + dx, y: y + dy, z: z + dz };
    };
    const length = FORCE_LENGTH * size;
    const shape = { radius: Math.min(0.05, length / 6), radiusRatio: 2.4, mid: 0.6, color: this.#colour("--forces") };
    this.viewer.addArrow({ start: point(FORCE_START), end: point(FORCE_START + length), ...shape });
  }

  // 3Dmol redraws a model whose style is set.
  #setStyle() {
    this.model.setStyle({}, STYLE);
    const marked = { ...STYLE, sphere: { scale: 0.3, color: this.#colour("--beyond") } };
    if (this.beyond.length > 0) this.model.setStyle({ index: this.beyond }, marked);
  }

  #addLabel(text, [x, y, z]) {
    const look = { fontSize: 12, backgroundColor: this.#colour("--beyond"), backgroundOpacity: 0.9, inFront: true };
    this.viewer.addLabel(text, { position: { x, y, z }, alignment: "bottomLeft", ...look });
  }

  #removeOverlays() {
    this.viewer.removeAllShapes();
    this.viewer.removeAllLabels();
    for (const other of this.others) this.viewer.removeModel(other);
    this.others = [];
  }

  #setBackground() {
    this.viewer.setBackgroundColor(getComputedStyle(this.element).backgroundColor);
  }

  #colour(name) {
    return getComputedStyle(this.element).getPropertyValue(name).trim();
  }

  #onKey(event) {
    const turns = { ArrowLeft: [-15, "y"], ArrowRight: [15, "y"], ArrowUp: [-15, "x"], ArrowDown: [15, "x"] };
    if (turns[event.key]) this.viewer.rotate(...turns[event.key]);
    else if (event.key === "+" || event.key === "=") this.viewer.zoom(1.2);
    else if (event.key === "-") this.viewer.zoom(1 / 1.2);
    else return;
    event.preventDefault();
  }
}
