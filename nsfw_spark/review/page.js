// The behaviour of a report page. Texts come from strangers: they reach the page as textContent and attributes only.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const STEPS = 1000, BARS = 50, PAGE = 24, BANDS = ["allow", "review", "block"], LABELS = ["safe", "unsafe", "skip"];
  const KEYS = { s: "safe", u: "unsafe", x: "skip" };
  const $ = (id) => document.getElementById(id);
  const number = new Intl.NumberFormat("en");

  // ---- texts

  /** Return a share in percent, as page.py writes it. */
  function percent(part, whole) {
    if (!whole) return "–";
    const share = (part / whole) * 100;
    if (part > 0 && share < 0.1) return "<0.1 %";
    if (part < whole && share > 99.9) return ">99.9 %";
    return `${share.toFixed(1)} %`;
  }
  /** Replace characters that steer the text around them: controls, changes of direction, lone surrogates. */
  function visible(text) {
    return text.replace(/[\p{Cc}\p{Cs}\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/gu, "\ufffd");
  }
  function clip(text, length) {
    const letters = Array.from(text);
    return letters.length > length ? `${letters.slice(0, length - 1).join("")}…` : text;
  }
  const images = (n) => `${number.format(n)} image${n === 1 ? "" : "s"}`;
  const baseName = (id) => id.replace(/\/+$/, "").split("/").pop() || id;
  const fixed = (step) => (step / STEPS).toFixed(3);

  // ---- elements

  function el(name, attributes = {}, ...children) {
    return filled(document.createElement(name), attributes, children);
  }
  function svg(name, attributes = {}, ...children) {
    return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
  }
  function filled(element, attributes, children) {
    for (const [key, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined) element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  }
  /** An untrusted text: isolated, shortened, whole in its title. */
  function stranger(name, attributes, text, length) {
    const shown = visible(text);
    const isolated = el("bdi", { dir: "auto" });
    isolated.textContent = clip(shown, length);
    return el(name, { ...attributes, title: shown }, isolated);
  }

  // ---- thresholds

  /** Numbers of images below each step. */
  function below(bins) {
    const sums = new Array(STEPS + 2).fill(0);
    for (const [bin, n] of Object.entries(bins)) sums[Number(bin) + 1] += n;
    for (let i = 1; i < sums.length; i += 1) sums[i] += sums[i - 1];
    return sums;
  }
  function bandsOf(sums) {
    const total = sums[STEPS + 1];
    return [sums[state.low], sums[state.high] - sums[state.low], total - sums[state.high]];
  }
  const first = { low: data.low, high: data.high };
  const state = { ...first, log: false, page: 0, current: 0 };
  const all = below(data.bins), total = all[STEPS + 1];
  const bandOf = (bin) => (bin < state.low ? "allow" : bin < state.high ? "review" : "block");
  const listeners = [];
  let settling = 0;

  /** Move one threshold; the other one stops it. */
  function move(which, step) {
    const [least, most] = which === "low" ? [0, state.high] : [state.low, STEPS];
    state[which] = Math.min(most, Math.max(least, Math.round(step)));
    changed();
  }
  function changed() {
    for (const listener of listeners) listener();
    clearTimeout(settling);
    settling = setTimeout(settled, 250);
  }
  /** What is too slow, or too talkative, to follow each movement. */
  function settled() {
    const counts = bandsOf(all);
    if ($("live")) {
      $("live").textContent = BANDS.map((band, i) => `${band} ${percent(counts[i], total)}, ${images(counts[i])}`).join("; ");
    }
    if ($("gallery")) arrange(false);
  }

  function showBands() {
    const counts = bandsOf(all), low = fixed(state.low), high = fixed(state.high);
    const rules = [`below ${low}`, `${low} to ${high}`, `from ${high}`];
    BANDS.forEach((band, i) => {
      $(`share-${band}`).textContent = percent(counts[i], total);
      $(`count-${band}`).textContent = images(counts[i]);
      $(`rule-${band}`).textContent = rules[i];
    });
    for (const which of ["low", "high"]) {
      const field = $(`${which}-number`);
      if (document.activeElement !== field) field.value = fixed(state[which]);
    }
  }
  function setUpNumbers() {
    for (const which of ["low", "high"]) {
      const field = $(`${which}-number`);
      field.addEventListener("input", () => {
        if (field.value !== "" && Number.isFinite(field.valueAsNumber)) move(which, field.valueAsNumber * STEPS);
      });
      field.addEventListener("change", () => { field.value = fixed(state[which]); });
      field.addEventListener("blur", () => { field.value = fixed(state[which]); });
    }
    $("reset").addEventListener("click", () => { Object.assign(state, first); changed(); });
    for (const choice of document.querySelectorAll('input[name="scale"]')) {
      choice.addEventListener("change", () => { state.log = choice.value === "log" && choice.checked; draw(); });
    }
    listeners.push(showBands, place);
  }

  // ---- histogram

  const chart = { left: 44, right: 14, top: 34, bottom: 26, height: 300, width: 0 };
  const counts50 = new Array(BARS).fill(0);
  for (const [bin, n] of Object.entries(data.bins)) counts50[Math.min(BARS - 1, Math.floor((Number(bin) * BARS) / STEPS))] += n;
  const x = (step) => chart.left + ((chart.width - chart.left - chart.right) * step) / STEPS;

  function setUpHistogram() {
    chart.zones = {}; chart.clips = {}; chart.bars = {}; chart.handles = {};
    const clips = svg("defs");
    chart.svg = svg("svg", { height: chart.height, role: "group", "aria-label": "Histogram of scores with two thresholds" });
    chart.back = svg("g", { "aria-hidden": "true" });
    for (const band of BANDS) {
      chart.zones[band] = svg("rect", { class: `zone zone-${band}`, y: chart.top });
      chart.clips[band] = svg("rect", { y: 0, height: chart.height });
      clips.append(svg("clipPath", { id: `clip-${band}` }, chart.clips[band]));
      chart.bars[band] = svg("path", { class: `bar-${band}`, "clip-path": `url(#clip-${band})` });
    }
    chart.grid = svg("g");
    chart.back.append(clips, ...Object.values(chart.zones), chart.grid, ...Object.values(chart.bars));
    chart.svg.append(chart.back, handle("low"), handle("high"));
    $("histogram").append(chart.svg);
    new ResizeObserver(draw).observe($("histogram"));
    draw();
  }

  /** Draw what depends on the width and on the scale. */
  function draw() {
    chart.width = Math.max(280, $("histogram").clientWidth);
    chart.svg.setAttribute("viewBox", `0 0 ${chart.width} ${chart.height}`);
    const most = Math.max(1, ...counts50), floor = chart.height - chart.bottom, tall = floor - chart.top - 8;
    const scaled = (n) => (state.log ? Math.log10(1 + n) / Math.log10(1 + most) : n / most);
    let path = "";
    counts50.forEach((n, i) => {
      if (!n) return;
      const high = Math.max(1.5, tall * scaled(n)), left = x((i * STEPS) / BARS) + 0.75;
      path += `M${left.toFixed(2)} ${floor}v${(-high).toFixed(2)}H${(x(((i + 1) * STEPS) / BARS) - 0.75).toFixed(2)}V${floor}z`;
    });
    for (const band of BANDS) chart.bars[band].setAttribute("d", path);
    chart.grid.replaceChildren();
    for (const tick of ticks(most)) {
      const y = floor - tall * scaled(tick);
      chart.grid.append(svg("line", { class: "grid", x1: chart.left, x2: chart.width - chart.right, y1: y, y2: y }),
        svg("text", { x: chart.left - 8, y: y + 4, "text-anchor": "end" }, short(tick)));
    }
    for (let step = 0; step <= STEPS; step += 200) {
      chart.grid.append(svg("text", { x: x(step), y: chart.height - 6, "text-anchor": "middle" }, (step / STEPS).toFixed(1)));
    }
    chart.grid.append(svg("line", { class: "axis", x1: chart.left, x2: chart.width - chart.right, y1: floor, y2: floor }));
    place();
  }
  function ticks(most) {
    if (state.log) {
      const powers = [];
      for (let power = 1; power <= most; power *= 10) powers.push(power);
      return powers.filter((_, i) => powers.length < 6 || i % 2 === 0);
    }
    const rough = most / 4, unit = 10 ** Math.floor(Math.log10(rough));
    const step = Math.max(1, unit * ([1, 2, 5, 10].find((each) => each * unit >= rough) ?? 10));
    return Array.from({ length: Math.floor(most / step) + 1 }, (_, i) => i * step);
  }
  function short(n) {
    if (n >= 1e9) return `${n / 1e9}G`;
    if (n >= 1e6) return `${n / 1e6}M`;
    return n >= 1e4 ? `${n / 1e3}k` : number.format(n);
  }

  /** Draw what follows the thresholds. */
  function place() {
    const edges = [0, state.low, state.high, STEPS].map(x), floor = chart.height - chart.bottom;
    BANDS.forEach((band, i) => {
      const wide = { x: edges[i], width: Math.max(0, edges[i + 1] - edges[i]) };
      filled(chart.zones[band], { ...wide, height: floor - chart.top }, []);
      filled(chart.clips[band], wide, []);
    });
    for (const which of ["low", "high"]) {
      const { group, tag, label } = chart.handles[which], at = x(state[which]);
      group.setAttribute("transform", `translate(${at} 0)`);
      filled(group, {
        "aria-valuenow": fixed(state[which]), "aria-valuemin": which === "low" ? 0 : fixed(state.low),
        "aria-valuemax": which === "low" ? fixed(state.high) : 1,
        "aria-valuetext": which === "low" ? `${fixed(state.low)}: allowed below` : `${fixed(state.high)}: blocked from here on`,
      }, []);
      // Low's tag hangs to the left, high's to the right, as far as there is room.
      const room = which === "low" ? Math.max(-86, 2 - at) : Math.min(0, chart.width - 2 - 86 - at);
      tag.setAttribute("x", room);
      label.setAttribute("x", room + 43);
      label.textContent = `${which} ${fixed(state[which])}`;
    }
  }

  /** One threshold: a slider for the pointer, for touch and for the keyboard. */
  function handle(which) {
    const y = which === "low" ? 196 : 96, floor = chart.height - chart.bottom;
    const group = svg("g", { class: `handle ${which}`, id: which, role: "slider", tabindex: 0, "aria-orientation": "horizontal",
      "aria-label": which === "low" ? "Low threshold" : "High threshold" });
    const tag = svg("rect", { class: "tag", y: 6, width: 86, height: 22, rx: 6 });
    const label = svg("text", { y: 21, "text-anchor": "middle" });
    group.append(svg("line", { class: "stem", y1: 28, y2: floor }),
      svg("rect", { class: "hit", x: -22, y: y - 30, width: 44, height: 60 }), svg("rect", { class: "hit", x: -7, y: 28, width: 14, height: floor - 28 }),
      svg("rect", { class: "grip", x: -9, y: y - 18, width: 18, height: 36, rx: 7 }),
      svg("path", { class: "ridge", d: `M-3 ${y - 7}v14M3 ${y - 7}v14` }), tag, label);
    chart.handles[which] = { group, tag, label };
    let offset = 0, dragged = false;
    const stepAt = (event) => {
      const box = chart.svg.getBoundingClientRect();
      const place = ((event.clientX - box.left) * chart.width) / box.width - offset;
      return ((place - chart.left) / (chart.width - chart.left - chart.right)) * STEPS;
    };
    group.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      offset = 0;
      offset = (x(Math.min(STEPS, Math.max(0, stepAt(event)))) - x(state[which]));
      dragged = true;
      group.setPointerCapture(event.pointerId);
      group.focus({ preventScroll: true });
      event.preventDefault();
    });
    group.addEventListener("pointermove", (event) => { if (dragged) move(which, stepAt(event)); });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) group.addEventListener(end, () => { dragged = false; });
    group.addEventListener("keydown", (event) => {
      const to = {
        ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 50, PageDown: -50, Home: -STEPS, End: STEPS,
      }[event.key];
      if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      move(which, state[which] + to);
    });
    return group;
  }

  // ---- the command

  function setUpCommand() {
    const hint = $("command-hint"), out = document.querySelector('input[name="review"][value="out"]');
    const show = () => {
      const isOut = out.checked;
      $("command").textContent = data.command.replaceAll("{threshold}", fixed(isOut ? state.low : state.high));
      hint.textContent = isOut
        ? "The threshold is LOW: safe_images gets the allowed images, flagged_images those for review and the blocked ones."
        : "The threshold is HIGH: safe_images gets the allowed images and those for review, flagged_images the blocked ones.";
      $("copied").textContent = "";
    };
    for (const choice of document.querySelectorAll('input[name="review"]')) choice.addEventListener("change", show);
    listeners.push(show);
    $("copy").addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText($("command").textContent);
        $("copied").textContent = "Copied.";
      } catch { // not allowed, or not there
        const range = document.createRange();
        range.selectNodeContents($("command"));
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        $("copied").textContent = "The command is selected: copy it with Ctrl+C.";
      }
    });
  }

  // ---- breakdown

  function setUpBreakdown() {
    for (const group of data.groups) {
      const rows = group.values.map((each) => breakdownRow(each));
      const head = el("tr");
      for (const [name, kind] of [["Value", ""], ["Images", "n"], ["Allow", "n"], ["Review", "n"], ["Block", "n"], ["No score", "n narrow-less"], ["", "wide narrow-less"]]) {
        head.append(name ? el("th", { scope: "col", class: kind }, name) : el("th", { scope: "col", class: kind }, el("span", { class: "hidden" }, "Shares as a bar")));
      }
      const table = el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows.map((row) => row.tr)));
      const title = visible(group.name);
      $("breakdown").append(stranger("h3", {}, group.name, 60),
        el("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": `Bands by ${clip(title, 60)}` }, table));
      listeners.push(() => rows.forEach((row) => row.update()));
    }
  }
  function breakdownRow({ value, bins, unscored }) {
    const sums = below(bins), scored = sums[STEPS + 1], all = scored + unscored;
    const cells = BANDS.map(() => el("td", { class: "n" }));
    const parts = [...BANDS, "unscored"].map((band) => svg("rect", { class: band, height: 8 }));
    const tr = el("tr", {}, stranger("th", { scope: "row" }, value, 60), el("td", { class: "n" }, number.format(all)), ...cells,
      el("td", { class: "n narrow-less" }, number.format(unscored)),
      el("td", { class: "wide narrow-less" }, svg("svg", { class: "bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" }, ...parts)));
    const update = () => {
      const counts = bandsOf(sums);
      let start = 0;
      [...counts, unscored].forEach((count, i) => {
        const width = all ? (count / all) * 100 : 0;
        filled(parts[i], { x: start.toFixed(3), width: width.toFixed(3) }, []);
        start += width;
        if (i < 3) cells[i].textContent = percent(count, scored);
        if (i < 3) cells[i].title = `${number.format(count)} of ${number.format(scored)}`;
      });
    };
    return { tr, update };
  }

  // ---- cards

  /** A blurred thumbnail that shows itself while it is held, or a placeholder. */
  function thumbnail(example, name) {
    if (!example.thumb) {
      const why = example.missing || "no thumbnail";
      const button = el("button", { type: "button", class: "thumb", "aria-disabled": "true" }, stranger("span", { class: "absent" }, why, 200));
      button.setAttribute("aria-label", clip(`${name}: no picture, ${visible(why)}`, 300));
      return button;
    }
    const image = el("img", { src: `data:${example.mime};base64,${example.thumb}`, alt: "", draggable: "false", decoding: "async" });
    const button = el("button", { type: "button", class: "thumb", "aria-pressed": "false", "aria-label": clip(`Hold to show ${name}`, 300) },
      image, el("span", { class: "hint", "aria-hidden": "true" }, "hold"));
    const show = (isShown) => button.setAttribute("aria-pressed", String(isShown));
    button.addEventListener("pointerdown", (event) => { if (event.button === 0) show(true); });
    for (const end of ["pointerup", "pointercancel", "pointerleave", "blur"]) button.addEventListener(end, () => show(false));
    button.addEventListener("contextmenu", (event) => event.preventDefault());
    button.addEventListener("keydown", (event) => {
      if (event.key !== " " && event.key !== "Enter") return;
      event.preventDefault();
      show(true);
    });
    button.addEventListener("keyup", (event) => { if (event.key === " " || event.key === "Enter") show(false); });
    return button;
  }
  addEventListener("blur", () => document.querySelectorAll('.thumb[aria-pressed="true"]').forEach((each) => each.setAttribute("aria-pressed", "false")));

  function card(example, status) {
    const name = clip(visible(baseName(example.id)), 120), text = el("div", { class: "text" });
    const top = el("div", { class: "score" });
    if (status) top.append(stranger("span", { class: "chip status" }, status, 40));
    else top.append(el("b", {}, example.score.toFixed(4)), el("span", { class: `chip ${bandOf(example.bin)}` }, bandOf(example.bin)));
    const shownName = stranger("span", { class: "id" }, baseName(example.id), 120);
    shownName.title = visible(example.id);
    text.append(top, shownName);
    for (const [key, value] of example.details) text.append(stranger("span", { class: "detail" }, `${key}: ${value}`, 140));
    return { item: el("li", { class: "card" }), thumb: thumbnail(example, name), text, name };
  }

  function setUpReasons() {
    for (const details of document.querySelectorAll("details[data-reason]")) {
      details.addEventListener("toggle", () => {
        if (!details.open || details.querySelector("ol")) return;
        const { status, examples } = data.reasons[Number(details.dataset.reason)];
        const list = el("ol", { class: "gallery", "aria-label": "Examples" });
        for (const example of examples) {
          const { item, thumb, text } = card(example, status);
          item.append(thumb, text);
          list.append(item);
        }
        details.append(list);
      });
    }
  }

  // ---- the gallery

  let shown = [];
  const cards = new Map();

  /** Sort and filter the examples again. The page stays, unless `isNew`. */
  function arrange(isNew) {
    const low = state.low / STEPS, band = $("band").value, wanted = $("label").value;
    const fits = (each) => (!band || bandOf(each.bin) === band)
      && (!wanted || (labels.get(each.id)?.label ?? "none") === wanted);
    const rank = (each) => 2 - BANDS.indexOf(bandOf(each.bin));
    const orders = {
      nearest: (a, b) => Math.abs(a.score - low) - Math.abs(b.score - low),
      highest: (a, b) => b.score - a.score,
      lowest: (a, b) => a.score - b.score,
      band: (a, b) => rank(a) - rank(b) || b.score - a.score,
    };
    shown = data.examples.filter(fits).sort(orders[$("order").value]);
    if (isNew) { state.page = 0; state.current = 0; }
    showPage();
  }
  const numPages = () => Math.max(1, Math.ceil(shown.length / PAGE));

  function showPage() {
    state.page = Math.min(state.page, numPages() - 1);
    const page = shown.slice(state.page * PAGE, (state.page + 1) * PAGE);
    state.current = Math.max(0, Math.min(state.current, page.length - 1));
    cards.clear();
    $("gallery").replaceChildren(...page.map((example, i) => galleryCard(example, i)));
    $("gallery").hidden = !shown.length;
    $("none").hidden = shown.length > 0;
    $("previous").disabled = state.page === 0;
    $("next").disabled = state.page >= numPages() - 1;
    $("page").textContent = shown.length
      ? `${number.format(state.page * PAGE + 1)}–${number.format(state.page * PAGE + page.length)} of ${number.format(shown.length)}` : "0 images";
    showCurrent();
  }
  function galleryCard(example, i) {
    const { item, thumb, text, name } = card(example, null);
    const choices = el("div", { class: "choices", role: "group", "aria-label": clip(`Label of ${name}`, 300) });
    for (const label of LABELS) {
      const button = el("button", { type: "button", class: label }, label);
      button.addEventListener("click", () => {
        state.current = i;
        if (labels.get(example.id)?.label === label) { relabel(example.id, null); focusCard(state.current); }
        else choose(label);
      });
      choices.append(button);
    }
    item.append(thumb, text, choices);
    item.addEventListener("focusin", () => { if (state.current !== i) { state.current = i; showCurrent(); } });
    cards.set(i, { item, thumb, choices, example });
    showLabel(cards.get(i));
    return item;
  }
  function showLabel({ choices, example }) {
    const label = labels.get(example.id)?.label;
    for (const button of choices.children) button.setAttribute("aria-pressed", String(button.className === label));
  }
  /** Only the current card is in the order of Tab; arrow keys reach the others. */
  function showCurrent() {
    for (const [i, { thumb, choices }] of cards) {
      for (const each of [thumb, ...choices.children]) each.tabIndex = i === state.current ? 0 : -1;
    }
  }
  function focusCard(i) {
    state.current = Math.max(0, Math.min(i, cards.size - 1));
    showCurrent();
    cards.get(state.current)?.thumb.focus();
  }
  /** Focus the image with a number in the whole order, on whatever page. */
  function focusNumber(i) {
    const wanted = Math.max(0, Math.min(i, shown.length - 1)), page = Math.floor(wanted / PAGE);
    if (page !== state.page) { state.page = page; showPage(); }
    focusCard(wanted - page * PAGE);
  }
  function turn(by) {
    state.page = Math.max(0, Math.min(state.page + by, numPages() - 1));
    state.current = 0;
    showPage();
    $("images").scrollIntoView();
    cards.get(0)?.thumb.focus();
  }

  // ---- labels: image_id → { label, when }

  const labels = new Map(), undone = [], known = new Set(data.examples.map((each) => each.id));
  let isKept = true, isSaved = true;

  function restore() {
    try {
      for (const [id, label, when] of JSON.parse(localStorage.getItem(data.key) ?? "[]")) {
        if (typeof id === "string" && LABELS.includes(label) && typeof when === "string") labels.set(id, { label, when });
      }
    } catch { isKept = false; }
  }
  function keep() {
    try {
      localStorage.setItem(data.key, JSON.stringify(Array.from(labels, ([id, { label, when }]) => [id, label, when])));
      isKept = true;
    } catch { isKept = false; }
  }
  function set(id, entry) {
    if (entry) labels.set(id, entry); else labels.delete(id);
  }
  function relabel(id, label) {
    undone.push([[id, labels.get(id)]]);
    set(id, label ? { label, when: new Date().toISOString() } : null);
    isSaved = false;
    keep();
    showLabels();
  }
  function showLabels() {
    const done = data.examples.filter((each) => labels.has(each.id)).length, others = labels.size - done;
    $("progress").value = done;
    $("labelled").textContent = `${number.format(done)} of ${number.format(data.examples.length)} labelled`
      + (others ? `, and ${number.format(others)} of other images` : "");
    $("undo").disabled = !undone.length;
    $("export").disabled = !labels.size;
    for (const each of cards.values()) showLabel(each);
    say(isKept ? "" : "This browser keeps no labels for this page: export them before you close it.");
  }
  const say = (text) => { $("message").textContent = text; };

  /** Label the current image, and go on to the next one. */
  function choose(label) {
    const { example } = cards.get(state.current) ?? {};
    if (!example) return;
    const at = state.page * PAGE + state.current;
    relabel(example.id, label);
    if ($("label").value) arrange(false);
    focusNumber(shown[at] === example ? at + 1 : at);
  }
  function undo() {
    const entries = undone.pop();
    if (!entries) return;
    for (const [id, entry] of entries) set(id, entry);
    isSaved = false;
    keep();
    if ($("label").value) arrange(false);
    showLabels();
    const at = shown.findIndex((each) => each.id === entries[0][0]);
    if (entries.length === 1 && at >= 0) focusNumber(at);
    else $("gallery").querySelector('.thumb[tabindex="0"]')?.focus();
  }

  function csv() {
    const quoted = (text) => (/[",\r\n]/.test(text) || text !== text.trim() ? `"${text.replaceAll('"', '""')}"` : text);
    const lines = Array.from(labels, ([id, { label, when }]) => [id, label, when].map(quoted).join(","));
    return ["image_id,label,when", ...lines, ""].join("\r\n");
  }
  function download() {
    const url = URL.createObjectURL(new Blob([csv()], { type: "text/csv;charset=utf-8" }));
    const link = el("a", { href: url, download: "labels.csv" });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
    isSaved = true;
    say(`${number.format(labels.size)} labels exported.`);
  }

  /** Return the rows of a CSV (RFC 4180), each with the number of its first line. */
  function rowsOf(text) {
    const rows = [];
    let row = [], field = "", isQuoted = false, wasQuoted = false, line = 1, start = 1;
    const endField = () => { row.push(field); field = ""; wasQuoted = false; };
    const endRow = () => { endField(); rows.push({ line: start, row }); row = []; start = line; };
    for (let i = 0; i < text.length; i += 1) {
      const c = text[i];
      if (c === "\n") line += 1;
      if (isQuoted) {
        if (c !== '"') field += c;
        else if (text[i + 1] === '"') { field += '"'; i += 1; } else isQuoted = false;
      } else if (c === '"' && field === "" && !wasQuoted) { isQuoted = true; wasQuoted = true; }
      else if (c === ",") endField();
      else if (c === "\n" || (c === "\r" && text[i + 1] !== "\n")) endRow();
      else if (c === "\r") continue;
      else if (wasQuoted || c === '"') throw new Error(`line ${line}: a quotation mark stands inside a field; write it twice, and put the field into quotation marks`);
      else field += c;
    }
    if (isQuoted) throw new Error(`line ${start}: a field begins with a quotation mark that never ends`);
    if (field !== "" || row.length || wasQuoted) endRow();
    return rows.filter((each) => each.row.length > 1 || each.row[0] !== "");
  }
  function labelsOf(text) {
    const [head, ...rows] = rowsOf(text.replace(/^\ufeff/, ""));
    const columns = (head?.row ?? []).map((name) => name.trim());
    const [id, label, when] = ["image_id", "label", "when"].map((name) => columns.indexOf(name));
    if (id < 0 || label < 0 || when < 0) {
      throw new Error(`the first line is “${clip(visible(columns.join(",")), 80)}”, but image_id,label,when was expected`);
    }
    return rows.map(({ line, row }) => {
      if (row.length !== columns.length) throw new Error(`line ${line} has ${row.length} fields, but ${columns.length} were expected`);
      if (!LABELS.includes(row[label])) throw new Error(`line ${line} has the label “${clip(visible(row[label]), 40)}”, but safe, unsafe or skip was expected`);
      if (!/^\d{4}-\d\d-\d\dT/.test(row[when]) || Number.isNaN(Date.parse(row[when]))) {
        throw new Error(`line ${line} has the time “${clip(visible(row[when]), 40)}”, but one such as 2026-11-27T12:00:00Z was expected`);
      }
      return [row[id], { label: row[label], when: row[when] }];
    });
  }
  /** Take over the labels of a file; of two for one image, the later one holds. */
  async function importFile(file) {
    let read;
    try {
      read = labelsOf(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(await file.arrayBuffer()));
    } catch (error) {
      const why = error instanceof TypeError ? "it is not UTF-8 text" : error.message;
      say(`Nothing was imported from ${clip(visible(file.name), 60)}: ${why}. Mend the file, or export it again.`);
      return;
    }
    const before = new Map();
    for (const [id, entry] of read) {
      const old = labels.get(id);
      if (old && Date.parse(old.when) > Date.parse(entry.when)) continue;
      if (!before.has(id)) before.set(id, old);
      labels.set(id, entry);
    }
    if (before.size) undone.push(Array.from(before));
    keep();
    arrange(false);
    showLabels();
    const others = new Set(read.map(([id]) => id).filter((id) => !known.has(id))).size;
    say(`${number.format(read.length)} labels imported`
      + (others ? `; ${number.format(others)} of images that this page does not show, kept for the export` : "") + (isKept ? "." : "; this browser does not keep them."));
  }

  function setUpGallery() {
    restore();
    for (const id of ["order", "band", "label"]) $(id).addEventListener("change", () => arrange(true));
    $("previous").addEventListener("click", () => turn(-1));
    $("next").addEventListener("click", () => turn(1));
    $("undo").addEventListener("click", undo);
    $("export").addEventListener("click", download);
    $("import").addEventListener("click", () => $("file").click());
    $("file").addEventListener("change", async () => {
      const [file] = $("file").files;
      if (file) await importFile(file);
      $("file").value = "";
    });
    $("start").addEventListener("click", () => {
      const at = shown.findIndex((each) => !labels.has(each.id));
      if (at >= 0) focusNumber(at);
      else say(shown.length ? "Each of these images has a label." : "No image fits this band and this label.");
    });
    // Only inside the gallery, so that a single key never surprises elsewhere.
    $("gallery").addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.repeat && KEYS[event.key]) return;
      const at = state.page * PAGE + state.current, key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
      if (KEYS[key]) choose(KEYS[key]);
      else if (key === "z") undo();
      else if (key === "ArrowRight") focusNumber(at + 1);
      else if (key === "ArrowLeft") focusNumber(at - 1);
      else return;
      event.preventDefault();
    });
    addEventListener("beforeunload", (event) => { if (!isKept && !isSaved) event.preventDefault(); });
    arrange(true);
    showLabels();
  }

  if (total) {
    setUpNumbers();
    setUpHistogram();
    if ($("command")) setUpCommand();
  }
  if (data.groups.length) setUpBreakdown();
  setUpReasons();
  if ($("gallery")) setUpGallery();
  for (const listener of listeners) listener();
})();
