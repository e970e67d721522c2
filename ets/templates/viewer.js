"use strict";
const SHORT = 240, PROMPT = 600, SEQUENTIAL = /^(lookahead|particles)/;  // whose weights are products over the guide steps
const at = (id) => document.getElementById(id);

function make(name, properties, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);  // strings become text, whatever they hold
  return element;
}

async function unpacked(letters) {
  const bytes = Uint8Array.from(atob(letters), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const number = (value) => (value === null ? "−∞" : value.toFixed(2).replace("-", "−"));
const reward = (value) => (value === undefined ? "none" : number(value));

/** A text with only its beginning shown, and a button for the rest. */
function text(content) {
  if (!content) return make("span", { className: "note" }, "nothing");
  const shown = make("span", { className: "text" }, content.slice(0, SHORT));
  if (content.length <= SHORT) return shown;
  const more = make("button", {}, `… all ${content.length} characters`);
  more.onclick = () => shown.replaceChildren(content);
  shown.append(more);
  return shown;
}

/** Probabilities in proportion to the weights, whose logarithms these are; null is a weight of zero. */
function shares(weights) {
  const known = weights.filter((weight) => weight !== null);
  if (!known.length) return weights.map(() => 1 / weights.length);
  const largest = Math.max(...known);
  const terms = weights.map((weight) => (weight === null ? 0 : Math.exp(weight - largest)));
  const total = terms.reduce((sum, term) => sum + term, 0);
  return terms.map((term) => term / total);
}

function rollouts(trace, step, m) {
  const of = step.rollouts[m], judged = step.done[m] ? "It is complete" : "Judged as it is";
  if (!of.length) return [make("p", { className: "note" }, `${judged}: r/λ ${number(step.terms[m][0])}.`)];
  const rows = of.map((which, k) => {
    const chosen = m === step.choice && k === step.rollout;
    const head = `${chosen ? "► " : ""}rollout ${k + 1}, r/λ ${number(step.terms[m][k])}: `;
    return make("li", { className: chosen ? "chosen" : "" }, head, text(trace.texts[which]));
  });
  return [make("ol", { className: "rollouts" }, ...rows)];
}

function candidate(trace, step, m, share) {
  const chosen = m === step.choice, content = trace.texts[step.texts[m]];
  const short = content.length > 100 ? `${content.slice(0, 100)} …` : content;
  const bar = make("div", { className: "bar" });
  bar.style.width = `${100 * share}%`;
  const weight = `${SEQUENTIAL.test(trace.method) ? "log w" : "log Ê"} ${number(step.weights[m])}`;
  const told = `${chosen ? "► " : ""}${m + 1} · p ${share.toFixed(2)} · ${weight}${step.done[m] ? " · ended" : ""}`;
  const card = make("details", { className: chosen ? "candidate chosen" : "candidate" },
    make("summary", {}, make("div", {}, told), bar, make("span", { className: "text" }, short || "nothing")));
  card.ontoggle = () => {
    if (card.open && card.children.length === 1) {
      const whole = content.length > 100 ? [make("p", {}, text(content))] : [];
      card.append(...whole, ...rollouts(trace, step, m));
    }
  };
  return card;
}

function column(trace, step, n) {
  const probabilities = shares(step.weights), count = step.weights.length;
  const spread = step.weights.every((weight) => weight === null)
    ? "every weight is zero: chosen evenly" : `effective sample size ${step.effective.toFixed(1)} of ${count}`;
  const cards = probabilities.map((share, m) => candidate(trace, step, m, share));
  return make("section", { className: "step", ariaLabel: `guide step ${n + 1}` },
    make("h4", {}, `Guide step ${n + 1} of ${trace.steps.length}`), make("div", { className: "note" }, spread), ...cards);
}

/** The chosen pieces one after the other; each leads to its candidate. Pieces that do not make up the text stand before it. */
function path(trace, columns) {
  const whole = trace.text !== undefined;
  const pieces = trace.steps.map((step, n) => {
    const piece = make("a", { href: "#viewer", title: `guide step ${n + 1}` }, make("sup", {}, `${n + 1} `), whole ? "" : trace.texts[step.texts[step.choice]]);
    piece.onclick = (event) => {
      event.preventDefault();
      columns[n].querySelector(".chosen summary").focus();
    };
    return piece;
  });
  const last = trace.steps.at(-1);  // a chain that stopped goes on with a rollout
  const rollout = last.rollout === null ? undefined : last.rollouts[last.choice][last.rollout];
  const rest = whole ? [make("div", {}, trace.text)] : rollout === undefined ? [] : [make("sup", {}, "rollout "), trace.texts[rollout]];
  return make("div", { className: "path text" }, ...pieces, ...rest);
}

function verdict(trace) {
  if (trace.correct === undefined) return [];
  const graded = trace.correct >= 1 ? "right" : trace.correct > 0 ? `score ${trace.correct}` : "wrong";
  const valid = trace.valid ? "" : "; every weight was zero at the end, so this is no sample of p*";
  if (trace.correct === null) return [make("p", {}, "Reward: ", make("b", {}, reward(trace.reward)), valid)];
  return [make("p", {}, "Answer: ", make("b", {}, trace.answer ?? "none"), ` (${graded}${valid})`)];
}

function show(trace) {
  const columns = trace.steps.map((step, n) => column(trace, step, n));
  const asked = trace.prompt || "given as token ids", short = asked.length <= PROMPT;
  const summary = make("summary", {}, short ? "Prompt" : make("span", { className: "text" }, `Prompt: … ${asked.slice(-PROMPT / 2)}`));
  const prompt = make("details", { open: short }, summary, make("pre", {}, asked));
  const steps = make("div", { className: "steps" }, ...columns);
  steps.onkeydown = (event) => move(event, columns);
  at("trace").replaceChildren(prompt, ...verdict(trace), path(trace, columns), steps);
}

/** Arrow keys: up and down within a guide step, left and right to the next one. */
function move(event, columns) {
  const card = event.target.closest(".candidate");
  const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!card || !by || event.target.tagName !== "SUMMARY") return;
  const here = columns.indexOf(card.parentElement), cards = (n) => [...columns[n].querySelectorAll(".candidate")];
  const there = columns[here + by[0]] ? here + by[0] : here;
  const row = Math.min(cards(here).indexOf(card) + by[1], cards(there).length - 1);
  event.preventDefault();
  cards(there)[Math.max(0, row)].querySelector("summary").focus();
}

function start({ kept, limit, traces }) {
  const which = at("which");
  which.append(...traces.map((trace) => make("option", {}, `${trace.problem} · ${trace.label}`)));
  which.onchange = () => show(traces[which.selectedIndex]);
  const turn = (by) => () => {
    which.selectedIndex = (which.selectedIndex + by + traces.length) % traces.length;
    which.onchange();
  };
  at("previous").onclick = turn(-1);
  at("next").onclick = turn(1);
  const left = kept > traces.length ? `${traces.length} of ${kept} traces are here. ` : "";
  const cut = limit === null ? "" : `Texts longer than ${limit} characters lost their middle. `;
  if (left || cut) at("trace").before(make("p", { className: "note" }, `${left}${cut}ets view --whole shows all.`));
  at("viewer").hidden = false;
  which.onchange();
}

const letters = at("packed").textContent;
if (letters) {
  unpacked(letters).then(start).catch((error) => {
    at("viewer").hidden = false;
    at("trace").textContent = `This browser cannot show the traces: ${error.message}`;
  });
}
