// The strip of the last minutes and the plot of times, each a small canvas beside the same in words.

const STRIP_STEP_S = 5; // between two pictures, unless the prompt changes
const PICTURE_HEIGHT = 38;
const PLOTTED = 120; // chunks

function fitted(canvas) {
  const scale = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  if (canvas.width !== Math.round(width * scale)) canvas.width = Math.round(width * scale);
  if (canvas.height !== Math.round(height * scale)) canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = "11px system-ui, sans-serif";
  return { context, width, height, style: getComputedStyle(canvas) };
}

const colour = (style, name) => style.getPropertyValue(name).trim();

export class Strip {
  constructor(canvas) {
    this.canvas = canvas;
    this.pictures = []; // {image, time_s, changed}
  }

  // A frame that was shown; most are passed by.
  offer(image, facts) {
    const last = this.pictures.at(-1);
    const prompt = facts.prompts.join("\n");
    const changed = last !== undefined && last.prompt !== prompt;
    if (last && !changed && facts.time_s - last.time_s < STRIP_STEP_S) return;
    const small = document.createElement("canvas");
    small.height = PICTURE_HEIGHT;
    small.width = Math.max(1, Math.round((PICTURE_HEIGHT * image.width) / image.height));
    small.getContext("2d").drawImage(image, 0, 0, small.width, small.height);
    this.pictures.push({ image: small, time_s: facts.time_s, changed, prompt });
    this.draw();
  }

  draw() {
    const { context, width, style } = fitted(this.canvas);
    const step = this.pictures[0].image.width + 3;
    const room = Math.max(1, Math.floor(width / step));
    this.pictures = this.pictures.slice(-Math.max(room, 60));
    const visible = this.pictures.slice(-room);
    visible.forEach(({ image, time_s, changed }, place) => {
      context.drawImage(image, place * step, 0);
      context.fillStyle = colour(style, changed ? "--second" : "--quiet");
      if (changed) context.fillRect(place * step, PICTURE_HEIGHT + 1, image.width, 2);
      context.fillText(`${time_s.toFixed(0)} s`, place * step, PICTURE_HEIGHT + 15);
    });
    const from = visible[0].time_s.toFixed(0);
    const changes = visible.filter((picture) => picture.changed).length;
    this.canvas.setAttribute(
      "aria-label",
      `Pictures from ${from} to ${visible.at(-1).time_s.toFixed(0)} seconds, ${changes} changes of prompt`,
    );
  }
}

export class Plot {
  constructor(canvas, words, plan) {
    Object.assign(this, { canvas, words });
    this.real_ms = (1000 * plan.chunk_frames) / plan.fps;
    this.times = []; // ms of the last chunks
  }

  add(facts) {
    this.times.push(facts.chunk_ms);
    this.times = this.times.slice(-PLOTTED);
    this.draw();
    const engines = Object.entries(facts.engines_ms)
      .filter(([, ms]) => ms >= 0.05)
      .sort((one, other) => other[1] - one[1])
      .map(([name, ms]) => `${name} ${ms.toFixed(1)}`);
    const factor = this.real_ms / facts.chunk_ms;
    this.words.textContent = `${facts.chunk_ms.toFixed(1)} ms, ${factor.toFixed(1)} times real time: ${engines.join(", ")}`;
  }

  draw() {
    const { context, width, height, style } = fitted(this.canvas);
    const top = 1.1 * Math.max(this.real_ms, ...this.times);
    const y = (ms) => height - 4 - ((height - 16) * ms) / top;
    context.strokeStyle = context.fillStyle = colour(style, "--second");
    context.setLineDash([4, 3]);
    context.beginPath();
    context.moveTo(0, y(this.real_ms));
    context.lineTo(width, y(this.real_ms));
    context.stroke();
    context.fillText(`real time, ${this.real_ms.toFixed(0)} ms`, 2, y(this.real_ms) - 3);
    context.setLineDash([]);
    context.strokeStyle = colour(style, "--first");
    context.lineWidth = 1.5;
    context.beginPath();
    this.times.forEach((ms, place) => context.lineTo((width * place) / (PLOTTED - 1), y(ms)));
    context.stroke();
    const middle = [...this.times].sort((one, other) => one - other)[this.times.length >> 1];
    this.canvas.setAttribute("aria-label", `Milliseconds of the last ${this.times.length} chunks, median ${middle.toFixed(0)}`);
  }
}
