
"use strict";
(() => {
  // Everything is text here: nodes are made one by one, and what a run said goes into textContent only.
  const PAGE = 40;
  const data = JSON.parse(document.getElementById("data").textContent);
  const get = (id) => document.getElementById(id);
  const form = get("browser");
  if (!form) return;
  const fields = { run: get("by-run"), set: get("by-set"), step: get("by-step"), which: get("by-which"), search: get("by-search") };
  const usual = { run: "", set: "", step: "", which: "all", search: "" };
  const list = get("list"), count = get("count"), more = get("more");
  const samples = data.samples;
  const several = data.runs.length > 1;
  let found = [], shown = 0;

  const make = (tag, kind, text) => {
    const node = document.createElement(tag);
    if (kind) node.className = kind;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const stepOf = (sample) => (sample.phase === "grpo" ? "" : sample.phase.replace("_", " ") + " ") + sample.step;
  const distinct = (values) => [...new Set(values)];
  const digits = (value) => String(Number(value.toPrecision(3)));

  const fill = (field, options) => {
    field.replaceChildren(...options.map(([value, label, disabled]) => {
      const option = make("option", "", label);
      option.value = value;
      option.disabled = Boolean(disabled);
      return option;
    }));
  };
  const verified = data.runs.some((run) => run.verifiers.length > 1);
  const alike = distinct(data.runs.filter((run) => run.verifiers.length > 1).map((run) => run.verifiers.join(", ")));
  const judges = alike.length === 1 ? alike[0] : "verifiers differ";
  fill(fields.run, [["", "all"], ...data.runs.map((run) => [run.label, run.label])]);
  fill(fields.set, [["", "all"], ...distinct(samples.map((s) => s.set)).map((name) => [name, name])]);
  fill(fields.step, [["", "all"], ["newest", "newest"], ...distinct(samples.map(stepOf)).map((name) => [name, name])]);
  fill(fields.which, [
    ["all", "all, newest first"], ["worst", "worst first"], ["best", "best first"], ["truncated", "cut off"],
    ["invalid", "no score"],
    ["disagreement", verified ? "verifiers disagree (" + judges + ")" : "verifiers disagree (there are not two)", !verified],
  ]);

  // The newest step of each set of each run: rows stand in the order in which they were recorded.
  const newest = new Map();
  for (const sample of samples) newest.set(sample.run + " " + sample.set, stepOf(sample));

  const marked = (node, text, search) => {
    if (!search) { node.textContent = text; return node; }
    const low = text.toLowerCase();
    if (low.length !== text.length) { node.textContent = text; return node; }
    let from = 0;
    for (let at = low.indexOf(search); at >= 0; at = low.indexOf(search, from)) {
      node.append(document.createTextNode(text.slice(from, at)), make("mark", "", text.slice(at, at + search.length)));
      from = at + search.length;
    }
    node.append(document.createTextNode(text.slice(from)));
    return node;
  };

  const article = (sample, search) => {
    const scores = sample.components || [];
    const accuracy = scores.find(([name]) => name === "accuracy");
    const verdict = sample.invalid || !accuracy || accuracy[1] === null ? "" : accuracy[1] > 0.5 ? " right" : " wrong";
    const node = make("article", "sample" + verdict);
    const head = make("p", "head");
    const same = make("button", "", "this prompt");
    same.type = "button";
    same.addEventListener("click", () => apply({ ...usual, search: sample.prompt || "" }));
    head.append(same);
    const parts = [];
    if (several) parts.push(make("b", "", data.runs[sample.run].label));
    parts.push(make("span", "", sample.set + ", step " + stepOf(sample)));
    if (sample.reward !== undefined) parts.push(make("b", "", (sample.summed ? "sum " : "reward ") + digits(sample.reward)));
    else parts.push(make("span", "alarm", "no score"));
    for (const [name, value] of scores) parts.push(make("span", "", name + " " + (value === null ? "-" : digits(value))));
    for (const [name, state] of sample.statuses || []) parts.push(make("span", "alarm", name + ": " + state));
    if (sample.answer) parts.push(make("span", "", "answer " + sample.answer));
    if (sample.truncated) parts.push(make("span", "alarm", "cut off"));
    if (sample.disagreement) parts.push(make("span", "alarm", "verifiers disagree"));
    if (sample.facts) parts.push(make("span", "", sample.facts));
    parts.forEach((part, i) => head.append(...(i ? [document.createTextNode(" · "), part] : [part])));
    node.append(head, marked(make("pre", "prompt"), sample.prompt || "", search), marked(make("pre"), sample.completion || "", search));
    return node;
  };

  const state = () => Object.fromEntries(Object.entries(fields).map(([name, field]) => [name, field.value]));
  const worth = (sample) => sample.reward;

  const choose = (view) => {
    const search = view.search.toLowerCase();
    let rows = samples.filter((s) =>
      (!view.run || data.runs[s.run].label === view.run) && (!view.set || s.set === view.set) &&
      (!view.step || stepOf(s) === (view.step === "newest" ? newest.get(s.run + " " + s.set) : view.step)) &&
      (!search || ((s.prompt || "") + "\n" + (s.completion || "") + "\n" + (s.answer || "")).toLowerCase().includes(search)));
    if (view.which === "worst" || view.which === "best") {
      rows = rows.filter((s) => s.reward !== undefined);
      rows.sort((a, b) => (view.which === "worst" ? worth(a) - worth(b) : worth(b) - worth(a)));
    } else if (view.which === "all") rows.reverse();
    else rows = rows.filter((s) => s[view.which]);
    return rows;
  };

  const extend = () => {
    const search = fields.search.value.toLowerCase();
    const next = found.slice(shown, shown + PAGE);
    list.append(...next.map((sample) => article(sample, search)));
    shown += next.length;
    more.hidden = shown >= found.length;
    count.dataset.shown = String(shown);
    count.dataset.found = String(found.length);
    count.textContent = found.length + " of " + samples.length + " completions" + (shown < found.length ? ", the first " + shown + " below" : "");
  };

  const draw = () => {
    found = choose(state());
    shown = 0;
    list.replaceChildren();
    extend();
  };

  const link = () => {
    const named = Object.entries(state()).filter(([name, value]) => value !== usual[name]);
    const fragment = new URLSearchParams(named).toString();
    history.replaceState(null, "", "#" + (fragment || "samples"));
  };

  const apply = (view) => {
    for (const [name, field] of Object.entries(fields)) {
      field.value = view[name];
      if (field.selectedIndex === -1) field.value = usual[name];
    }
    draw();
    link();
  };

  // A view can be linked: #set=heldout&which=worst&search=... An anchor of the page has no "=".
  const read = () => {
    const text = location.hash.slice(1);
    if (text && !text.includes("=")) return null;
    const asked = new URLSearchParams(text);
    const view = { ...usual };
    for (const name of Object.keys(view)) if (asked.has(name)) view[name] = asked.get(name);
    return view;
  };

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", () => { draw(); link(); });
  form.addEventListener("reset", (event) => { event.preventDefault(); apply(usual); });
  let waiting = 0;
  fields.search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(() => { draw(); link(); }, 150); });
  more.addEventListener("click", extend);
  window.addEventListener("hashchange", () => { const view = read(); if (view) apply(view); });

  form.hidden = false;
  get("static").hidden = true;
  const first = read();
  for (const [name, field] of Object.entries(fields)) {
    field.value = (first || usual)[name];
    if (field.selectedIndex === -1) field.value = usual[name];
  }
  draw();
  if (first && location.hash.includes("=")) get("samples").scrollIntoView();
})();
