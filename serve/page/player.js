// Decodes the messages of a stream and shows their frames at the video's pace.

const LATE_CHUNKS = 3; // of frames that wait; more are dropped, the oldest first
const HURRY = 0.85; // of a frame's time, while more than a chunk waits

// Whether this browser decodes the H.264 that the server makes. Pages that are not secure have no WebCodecs.
export async function decodesH264() {
  if (!("VideoDecoder" in window)) return false;
  try {
    return (await VideoDecoder.isConfigSupported({ codec: "avc1.42c00a" })).supported;
  } catch {
    return false;
  }
}

// The parts of a message: see /api/openapi.json.
export function parsed(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let start = 4 + length;
  const frames = head.sizes.map((size) => {
    start += size;
    return new Uint8Array(buffer, start - size, size);
  });
  return { head, frames };
}

export class Player {
  // `shown(image, facts)` is called for every frame that is drawn, `failed(error)` when frames cannot be decoded.
  constructor(canvas, plan, { shown, failed }) {
    Object.assign(this, { canvas, plan, shown, failed });
    this.context = canvas.getContext("2d", { alpha: false });
    canvas.width = plan.width;
    canvas.height = plan.height;
    this.waiting = []; // {image, facts}, in order
    this.facts = new Map(); // of frames in the decoder, by timestamp
    this.pictures = Promise.resolve(); // JPEG is decoded one after another
    this.due = 0;
    this.frame_ms = 1000 / plan.fps;
    this.tick = requestAnimationFrame((now) => this.play(now));
  }

  push(head, frames) {
    const timed = frames.map((data, number) => ({
      data,
      facts: { ...head, first: number === 0, time_s: head.start_s + number / this.plan.fps },
    }));
    try {
      if (head.codec === "jpeg") this.decodePictures(timed);
      else this.decodeVideo(head.codec, timed);
    } catch (error) {
      this.failed(error);
    }
  }

  decodePictures(timed) {
    this.pictures = this.pictures
      .then(async () => {
        for (const { data, facts } of timed) {
          this.keep(await createImageBitmap(new Blob([data], { type: "image/jpeg" })), facts);
        }
      })
      .catch((error) => this.failed(error));
  }

  decodeVideo(codec, timed) {
    if (!this.decoder || this.decoder.state === "closed") {
      this.decoder = new VideoDecoder({
        output: (image) => {
          this.keep(image, this.facts.get(image.timestamp));
          this.facts.delete(image.timestamp);
        },
        error: (error) => this.failed(error),
      });
      this.decoder.configure({ codec, optimizeForLatency: true });
    }
    for (const { data, facts } of timed) {
      const timestamp = Math.round(facts.time_s * 1e6);
      this.facts.set(timestamp, facts);
      this.decoder.decode(new EncodedVideoChunk({ type: facts.first ? "key" : "delta", timestamp, data }));
    }
  }

  keep(image, facts) {
    if (!facts || this.closed) {
      image.close();
      return;
    }
    this.waiting.push({ image, facts });
    while (this.waiting.length > LATE_CHUNKS * this.plan.chunk_frames) this.waiting.shift().image.close();
  }

  play(now) {
    if (this.closed) return;
    this.tick = requestAnimationFrame((later) => this.play(later));
    if (!this.waiting.length || now < this.due) return;
    const { image, facts } = this.waiting.shift();
    const pace = this.waiting.length > this.plan.chunk_frames ? HURRY : 1;
    this.due = Math.max(this.due + pace * this.frame_ms, now);
    this.context.drawImage(image, 0, 0);
    this.shown(this.canvas, facts);
    image.close();
  }

  close() {
    this.closed = true;
    cancelAnimationFrame(this.tick);
    if (this.decoder && this.decoder.state !== "closed") this.decoder.close();
    for (const { image } of this.waiting) image.close();
    this.waiting = [];
  }
}
