// One stream on the page: its socket, its picture and its controls.

import { address, ask, socketAddress } from "/page/api.js";
import { Plot, Strip } from "/page/charts.js";
import { Player, parsed } from "/page/player.js";

const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 8000;

export class Panel {
  // `page`: plan, form (h264 or jpeg), say, complain, forked(stream), gone(panel).
  constructor(stream, number, page) {
    Object.assign(this, { stream, page, retry_ms: FIRST_RETRY_MS });
    const copy = document.getElementById("panel").content.cloneNode(true);
    this.element = copy.querySelector("section");
    this.find = (selector) => this.element.querySelector(selector);
    this.name = `Stream ${number}`;
    this.find("h2").textContent = this.name;
    this.find("h2").id = `stream-${stream.id}`;
    this.element.setAttribute("aria-labelledby", `stream-${stream.id}`);
    this.element.dataset.id = stream.id;
    for (const part of this.element.querySelectorAll("[data-text]")) part.hidden = !page.plan.takes_text;
    this.strip = new Strip(this.find(".strip"));
    this.plot = new Plot(this.find(".plot"), this.find(".times"), page.plan);
    this.find("[name=save]").href = address(`/api/streams/${stream.id}/state`);
    this.find("[name=prompt]").value = stream.prompts[0] ?? "";
    this.listen();
    this.show(stream);
    this.connect();
  }

  listen() {
    const path = `/api/streams/${this.stream.id}`;
    this.find(".prompt").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send({ type: "prompt", prompt: this.find("[name=prompt]").value });
    });
    this.find("[name=pause]").addEventListener("click", () => this.send({ type: "pause", paused: !this.stream.paused }));
    this.find(".controls").addEventListener("submit", (event) => {
      event.preventDefault();
      const seed = this.find(".controls [name=seed]").value;
      this.page.attempt(async () => this.page.forked(await ask("POST", `${path}/fork`, { seed }), this));
    });
    this.find("[name=end]").addEventListener("click", () =>
      this.page.attempt(async () => {
        await ask("DELETE", path);
        this.close(`${this.name} has ended`);
      }),
    );
  }

  connect() {
    const path = `/api/streams/${this.stream.id}/live`;
    this.player = new Player(this.find(".picture"), this.page.plan, {
      shown: (image, facts) => this.frame(image, facts),
      failed: (error) => this.fallBack(error),
    });
    this.socket = new WebSocket(socketAddress(path, { codec: this.page.form }));
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = ({ data }) => {
      this.retry_ms = FIRST_RETRY_MS;
      if (typeof data === "string") this.take(JSON.parse(data));
      else {
        const { head, frames } = parsed(data);
        this.player.push(head, frames);
        this.plot.add(head);
      }
    };
    this.socket.onclose = () => {
      this.player.close();
      if (!this.closed) setTimeout(() => this.reconnect(), this.retry_ms);
      this.retry_ms = Math.min(2 * this.retry_ms, LONGEST_RETRY_MS);
    };
  }

  take(message) {
    if (message.type === "error") this.page.complain(message.error);
    else this.show(message);
  }

  // What the server says of the stream.
  show(stream) {
    if (stream.history.at(-1)?.start_s !== this.stream.history.at(-1)?.start_s) {
      this.page.complain("");
      this.page.say(`${this.name} follows: ${stream.prompts.join(" | ")}`);
    }
    if (stream.paused !== this.stream.paused) this.page.say(`${this.name} ${stream.paused ? "is paused" : "goes on"}`);
    this.stream = stream;
    const pause = this.find("[name=pause]");
    pause.textContent = stream.paused ? "Go on" : "Pause";
    pause.setAttribute("aria-pressed", String(stream.paused));
    if (stream.problem) this.page.complain(`${this.name}: ${stream.problem}`);
    this.find(".prompts").replaceChildren(...stream.history.slice(-50).map((entry) => this.past(entry)));
  }

  // A prompt on the time line; a click follows it again.
  past({ start_s, prompts }) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const time = document.createElement("time");
    time.textContent = `${start_s.toFixed(1)} s`;
    button.append(time, prompts.join(" | "));
    button.title = "Follow this prompt again";
    button.addEventListener("click", () => this.send({ type: "prompt", prompt: prompts }));
    item.append(button);
    return item;
  }

  frame(image, facts) {
    if (!performance.getEntriesByName("first-frame").length) performance.mark("first-frame");
    const shown = facts.prompts.join(" | ");
    this.find(".clock").textContent = `${facts.time_s.toFixed(1)} s, chunk ${facts.chunk}${shown && `: ${shown}`}`;
    this.find(".picture").setAttribute("aria-label", `${this.name}, video: ${shown || "no prompt"}`);
    if (facts.first) this.strip.offer(image, facts);
  }

  send(message) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
    else this.page.complain(`${this.name}: there is no connection; wait for it`);
  }

  fallBack(error) {
    if (this.page.form === "h264") {
      this.page.form = "jpeg";
      this.page.say("This browser cannot decode the video; it gets pictures instead");
      this.socket.close();
    } else this.page.complain(`${this.name}: ${error.message}`);
  }

  // After a lost connection, as long as the stream is there.
  async reconnect() {
    if (this.closed) return;
    try {
      const stream = await ask("GET", `/api/streams/${this.stream.id}`);
      if (stream.ended || stream.problem) return;
      this.connect();
    } catch (error) {
      if (error.status === 404) this.close(`${this.name} is no longer there`);
      else setTimeout(() => this.reconnect(), LONGEST_RETRY_MS);
    }
  }

  close(why) {
    this.closed = true;
    this.socket.close();
    this.player.close();
    this.element.remove();
    this.page.say(why);
    this.page.gone(this);
  }
}
