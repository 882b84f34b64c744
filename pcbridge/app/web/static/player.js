// Plays the steps of a denoising, also while they still arrive, and moves between them without jumps.

const MILLISECONDS_A_STEP = 80;

export class Player {
  // `onFrame(positions, index, isLast)` draws; `isLast` only when the last step of a finished denoising is reached.
  constructor(onFrame) {
    this.onFrame = onFrame;
    this.stop();
  }

  stop() {
    cancelAnimationFrame(this.request);
    this.frames = [];
    this.index = 0; // between two steps while playing
    this.finished = false;
    this.playing = false;
  }

  // Start to play from step 0; the frames may still be on their way.
  play() {
    this.index = 0;
    this.playing = true;
    this.previous = performance.now();
    cancelAnimationFrame(this.request);
    this.request = requestAnimationFrame((now) => this.#advance(now));
  }

  // Show one step and rest there.
  show(index) {
    this.playing = false;
    this.index = index;
    this.#draw();
  }

  #advance(now) {
    // The first frame's time may lie before the call of `play`.
    const passed = Math.max(now - this.previous, 0) / MILLISECONDS_A_STEP;
    this.previous = now;
    this.index = Math.min(this.index + passed, Math.max(this.frames.length - 1, 0));
    if (!this.playing) return;
    if (this.frames.length > 0) this.#draw();
    if (this.finished && this.index >= this.frames.length - 1) this.playing = false;
    else this.request = requestAnimationFrame((next) => this.#advance(next));
  }

  #draw() {
    const before = this.frames[Math.floor(this.index)];
    const after = this.frames[Math.ceil(this.index)];
    const share = this.index % 1;
    const positions = before.map((point, i) => point.map((x, k) => x + share * (after[i][k] - x)));
    this.onFrame(positions, Math.floor(this.index), this.finished && this.index >= this.frames.length - 1);
  }
}
