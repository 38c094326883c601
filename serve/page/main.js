// The page: what is asked of the server as a whole, and a panel for each stream.

import { ask } from "/page/api.js";
import { Panel } from "/page/panel.js";
import { decodesH264 } from "/page/player.js";

const begin = document.getElementById("begin");
const panels = [];
let count = 0;

const page = {
  plan: null,
  form: "jpeg",

  say(text) {
    document.getElementById("status").textContent = text;
  },

  complain(text) {
    document.getElementById("alert").textContent = text;
  },

  async attempt(action) {
    try {
      page.complain("");
      await action();
    } catch (error) {
      page.complain(error.message);
    }
  },

  forked(stream, from) {
    page.add(stream);
    page.say(`Stream ${count} goes on from ${from.name}`);
  },

  gone(panel) {
    panels.splice(panels.indexOf(panel), 1);
    page.remember();
  },

  add(stream) {
    count += 1;
    const panel = new Panel(stream, count, page);
    panels.push(panel);
    document.getElementById("streams").append(panel.element);
    page.remember();
  },

  // In the address, so that a reload comes back to the same streams.
  remember() {
    history.replaceState(null, "", panels.length ? `#${panels.map((panel) => panel.stream.id).join(",")}` : location.pathname);
  },
};

async function start() {
  const wanted = location.hash.slice(1).split(",").filter(Boolean);
  const [plan, h264] = await Promise.all([ask("GET", "/api/plan"), decodesH264()]);
  page.plan = plan;
  page.form = plan.h264 && h264 ? "h264" : "jpeg";
  describe(plan);
  for (const id of wanted) {
    try {
      page.add(await ask("GET", `/api/streams/${encodeURIComponent(id)}`));
    } catch (error) {
      if (error.status !== 404) throw error;
    }
  }
  if (panels.length) return;
  if (!plan.takes_text) page.add(await ask("POST", "/api/streams", {}));
  else if (plan.examples.length) page.add(await ask("POST", "/api/streams", { prompt: plan.examples[0] }));
  else begin.prompt.focus();
}

function describe(plan) {
  document.title = `${plan.name} - videossm`;
  document.getElementById("plan").textContent =
    `${plan.name}, ${plan.precision} on ${plan.device}, ${plan.width}x${plan.height} at ${plan.fps} frames a second`;
  const options = plan.examples.map((text) => Object.assign(document.createElement("option"), { value: text }));
  document.getElementById("examples").replaceChildren(...options);
  for (const part of begin.querySelectorAll("[data-text]")) part.hidden = !plan.takes_text;
  begin.prompt.required = plan.takes_text;
  begin.prompt.maxLength = plan.most_prompt_characters;
  begin.prompt.placeholder = plan.examples[0] ?? "";
  begin.querySelector("button").disabled = false; // not before: what a stream is asked with depends on the plan
}

begin.addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = page.plan.takes_text ? { prompt: begin.prompt.value } : {};
  page.attempt(async () => page.add(await ask("POST", "/api/streams", { ...prompt, seed: begin.seed.value })));
});

begin.state.addEventListener("change", () => {
  const [file] = begin.state.files;
  if (file) page.attempt(async () => page.add(await ask("POST", "/api/states", file)));
  begin.state.value = "";
});

page.attempt(start);
