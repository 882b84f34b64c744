// Plays the frames of a refinement and moves between them without jumps.

const MILLISECONDS_A_STEP = 300;

export class Player {
  // `onFrame(positions, index, isLast)` draws.
  constructor(onFrame) {
    this.onFrame = onFrame;
    this.stop();
  }

  stop() {
    cancelAnimationFrame(this.request);
    this.frames = [];
    this.index = 0; // between two steps while playing
  }

  // Play from the first frame to the last.
  play() {
    this.index = 0;
    this.previous = performance.now();
    cancelAnimationFrame(this.request);
    this.request = requestAnimationFrame((now) => this.#advance(now));
  }

  // Show one frame and rest there.
  show(index) {
    cancelAnimationFrame(this.request);
    this.index = index;
    this.#draw();
  }

  #advance(now) {
    // The first frame's time may lie before the call of `play`.
    const passed = Math.max(now - this.previous, 0) / MILLISECONDS_A_STEP;
    this.previous = now;
    this.index = Math.min(this.index + passed, this.frames.length - 1);
    this.#draw();
    if (this.index < this.frames.length - 1) this.request = requestAnimationFrame((next) => this.#advance(next));
  }

  #draw() {
    const before = this.frames[Math.floor(this.index)];
    const after = this.frames[Math.ceil(this.index)];
    const share = this.index % 1;
    const positions = before.map((point, i) => point.map((x, k) => x + share * (after[i][k] - x)));
    this.onFrame(positions, Math.floor(this.index), this.index >= this.frames.length - 1);
  }
}
