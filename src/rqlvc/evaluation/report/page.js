"use strict";
// Draws the charts of the page from the JSON in it, and sorts its tables. Each chart is a pure function of the data and
// of what the reader has chosen; a choice or another width draws all of them again.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

function node(tag, attributes, parent, text) {
  const svg = "svg g path line text circle".split(" ").includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

const fixed = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const signed = (value, digits) => (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(digits);
const bitsText = (bits) => (bits === null ? "–" : Math.round(bits).toLocaleString("en") + " bits");
const kilo = (bits) => (bits > 0 ? bits / 1000 : null); // no logarithm of a target that is 0 or less
const indices = (list) => list.map((_, index) => index);

// --- scales ---------------------------------------------------------------------------------------------------------

function scale([low, high], start, end, log) {
  const f = log ? Math.log : (value) => value;
  return (value) => start + ((f(value) - f(low)) / (f(high) - f(low) || 1)) * (end - start);
}

// Smallest and largest with some air; `values` may hold null.
function extent(values, log, air = 0.05) {
  const known = values.filter((value) => value !== null && Number.isFinite(value) && (!log || value > 0));
  if (!known.length) return log ? [1, 10] : [0, 1];
  let low = Infinity, high = -Infinity;
  for (const value of known) { low = Math.min(low, value); high = Math.max(high, value); }
  if (log) {
    const grow = Math.max(high / low, 1.3) ** air;
    return [low / grow, high * grow];
  }
  const grow = air * (high - low || Math.abs(high) || 1);
  return [low - grow, high + grow];
}

function ticks([low, high], log, most) {
  if (log) {
    for (const steps of [[1, 2, 5], [1, 3], [1]]) {
      const found = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
        for (const step of steps) found.push(step * 10 ** power);
      const inside = found.filter((value) => value >= low && value <= high);
      if (inside.length <= most && inside.length >= 2) return inside;
    }
  }
  const rough = (high - low) / Math.max(most, 1), power = 10 ** Math.floor(Math.log10(rough));
  const steps = [10, 5, 2, 1, 0.5].map((factor) => factor * power);
  const widest = steps.findLastIndex((value) => value >= rough * 0.999);
  let found = [];
  for (const step of steps.slice(widest)) {
    found = [];
    for (let k = Math.ceil(low / step); k * step <= high + 1e-9 * (high - low); k++) found.push(+(k * step).toPrecision(12));
    if (found.length >= 2) break; // one label tells no scale
  }
  return found;
}

const tickText = (value) => (Math.abs(value) >= 1000 ? value.toLocaleString("en") : String(+value.toPrecision(6)).replace("-", "−"));

// --- marks ----------------------------------------------------------------------------------------------------------

const polygon = (corners) => (x, y, r) => "M" + corners.map(([dx, dy]) => `${(x + dx * r).toFixed(1)},${(y + dy * r).toFixed(1)}`).join("L") + "Z";
const SHAPES = [
  (x, y, r) => `M${(x - r).toFixed(1)},${y.toFixed(1)}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`,
  polygon([[-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]]),
  polygon([[0, -1.3], [1.2, 0.9], [-1.2, 0.9]]),
  polygon([[0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]]),
  polygon([[0, 1.3], [1.2, -0.9], [-1.2, -0.9]]),
  polygon([[-0.4, -1.2], [0.4, -1.2], [0.4, -0.4], [1.2, -0.4], [1.2, 0.4], [0.4, 0.4], [0.4, 1.2], [-0.4, 1.2], [-0.4, 0.4], [-1.2, 0.4], [-1.2, -0.4], [-0.4, -0.4]]),
  polygon([[-1.3, 0], [0.9, -1.2], [0.9, 1.2]]),
  polygon([[1.3, 0], [-0.9, -1.2], [-0.9, 1.2]]),
  polygon([[0, -0.5], [0.7, -1.2], [1.2, -0.7], [0.5, 0], [1.2, 0.7], [0.7, 1.2], [0, 0.5], [-0.7, 1.2], [-1.2, 0.7], [-0.5, 0], [-1.2, -0.7], [-0.7, -1.2]]),
  polygon([[0, -1.3], [1.2, -0.4], [0.8, 1.1], [-0.8, 1.1], [-1.2, -0.4]]),
  polygon([[-1.4, -0.5], [1.4, -0.5], [1.4, 0.5], [-1.4, 0.5]]),
];
const shapeOf = (slot) => SHAPES[/^s\d+$/.test(slot) ? +slot.slice(1) : 0];

// A path through the points; a null breaks it. `step` holds each value from half-way before to half-way after its x.
function trace(xs, ys, px, py, step) {
  let path = "", pen = "M";
  for (let i = 0; i < xs.length; i++) {
    if (ys[i] === null || xs[i] === null) { pen = "M"; continue; }
    const y = py(ys[i]).toFixed(1);
    if (step) {
      const before = (xs[i] - (i ? xs[i - 1] : 2 * xs[0] - (xs[1] ?? xs[0] + 1))) / 2;
      const after = ((i + 1 < xs.length ? xs[i + 1] : 2 * xs[i] - (xs[i - 1] ?? xs[i] - 1)) - xs[i]) / 2;
      path += `${pen}${px(xs[i] - before).toFixed(1)},${y}H${px(xs[i] + after).toFixed(1)}`;
    } else path += `${pen}${px(xs[i]).toFixed(1)},${y}`;
    pen = "L";
  }
  return path;
}

const TITLE = 27, GAP = 16, LEFT = 46, BOTTOM = 38;

// spec: {label, x: {label, log, domain}, right, verticals, panels: [{title, log, domain, height, marks}], hover}
// hover: {at: [{x, y?, panel?}], item(i) → {title, rows: [[name, text, slot]], dots: [[panel, y]]}}; without y the
// nearest x counts.
function draw(host, spec) {
  host.replaceChildren();
  const width = host.clientWidth, right = spec.right || 12;
  if (!width) return;
  const height = spec.panels.reduce((sum, panel) => sum + TITLE + panel.height + GAP, 0) + BOTTOM - GAP;
  const svg = node("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": spec.label }, host);
  const px = scale(spec.x.domain, LEFT, width - right, spec.x.log);
  const xTicks = ticks(spec.x.domain, spec.x.log, Math.max(2, (width - LEFT - right) / 62));
  const scales = [];
  let top = 0;
  spec.panels.forEach((panel, index) => {
    top += TITLE;
    const base = top + panel.height, py = scale(panel.domain, base, top, panel.log);
    scales.push(py);
    node("text", { x: 0, y: top - 12, class: "title" }, svg, panel.title);
    for (const value of ticks(panel.domain, panel.log, Math.max(2, panel.height / 34))) {
      node("line", { x1: LEFT, x2: width - right, y1: py(value), y2: py(value), class: "grid" }, svg);
      node("text", { x: LEFT - 7, y: py(value) + 4, "text-anchor": "end" }, svg, tickText(value));
    }
    for (const value of xTicks)
      if (!spec.verticals) node("line", { x1: px(value), x2: px(value), y1: top, y2: base, class: "grid" }, svg);
    for (const value of spec.verticals || [])
      node("line", { x1: px(value), x2: px(value), y1: top, y2: base, class: "intra" }, svg);
    node("line", { x1: LEFT, x2: width - right, y1: base, y2: base, class: "axis" }, svg);
    const labels = [];
    for (const mark of panel.marks) {
      const style = `${mark.slot || "ink"} ${mark.style || ""}`;
      if (mark.kind === "line") node("path", { d: trace(mark.x, mark.y, px, py, mark.step), class: `line ${style}` }, svg);
      if (mark.kind === "rule")
        node("line", { x1: LEFT, x2: width - right, y1: py(mark.y), y2: py(mark.y), class: `line ${style}` }, svg);
      if (mark.kind === "points") {
        const shape = mark.shape || shapeOf(mark.slot), r = mark.r || 3;
        const path = mark.x.map((x, i) => (mark.y[i] === null || x === null ? "" : shape(px(x), py(mark.y[i]), r))).join("");
        node("path", { d: path, class: `points ${style}` }, svg);
      }
      if (mark.kind === "stems") {
        const path = mark.x.map((x, i) => (mark.y[i] === null ? "" : `M${px(x).toFixed(1)},${py(mark.from[i]).toFixed(1)}V${py(mark.y[i]).toFixed(1)}`));
        node("path", { d: path.join(""), class: `stems ${style}` }, svg);
      }
      if (mark.label) {
        if (mark.kind === "rule") labels.push({ x: width - right, y: py(mark.y) - 5, anchor: "end", mark });
        else {
          const last = mark.y.findLastIndex((value) => value !== null);
          if (last >= 0) labels.push({ x: width - right + 8, y: py(mark.y[last]) + 4, anchor: "start", mark, from: [px(mark.x[last]), py(mark.y[last])] });
        }
      }
    }
    // Labels at the ends of lines: pushed apart downwards, then back up where they would leave the panel.
    const ends = labels.filter((label) => label.from).sort((a, b) => a.y - b.y);
    for (let i = 1; i < ends.length; i++) ends[i].y = Math.max(ends[i].y, ends[i - 1].y + 13);
    const over = ends.length ? ends[ends.length - 1].y - base - 2 : 0;
    if (over > 0) for (let i = ends.length - 1; i >= 0; i--) ends[i].y = Math.min(ends[i].y, i === ends.length - 1 ? base + 2 : ends[i + 1].y - 13);
    for (const label of labels) {
      if (label.from && label.x - label.from[0] > 14)
        node("line", { x1: label.from[0] + 5, y1: label.from[1], x2: label.x - 3, y2: label.y - 4, class: `leader ${label.mark.slot}` }, svg);
      node("text", { x: label.x, y: label.y, "text-anchor": label.anchor, class: `direct ${label.mark.slot || "ink"}` }, svg, label.mark.label);
    }
    top = base + GAP;
  });
  const floor = top - GAP;
  for (const value of xTicks) {
    node("line", { x1: px(value), x2: px(value), y1: floor, y2: floor + 4, class: "axis" }, svg);
    node("text", { x: px(value), y: floor + 17, "text-anchor": "middle" }, svg, tickText(value));
  }
  node("text", { x: width - right, y: floor + 34, "text-anchor": "end" }, svg, spec.x.label);
  if (spec.hover && spec.hover.at.length) listen(host, svg, spec.hover, px, scales, floor);
}

function listen(host, svg, hover, px, scales, floor) {
  const layer = node("g", { "aria-hidden": "true" }, svg);
  const tip = node("div", { class: "tip", role: "status", hidden: "" }, host);
  const at = hover.at.map(({ x, y, panel }) => [px(x), y === undefined ? null : scales[panel || 0](y)]);
  let shown = -1;
  function show(index) {
    shown = index;
    const item = hover.item(index);
    layer.replaceChildren();
    if (at[index][1] === null) node("line", { x1: at[index][0], x2: at[index][0], y1: TITLE, y2: floor, class: "cursor" }, layer);
    for (const [panel, y] of item.dots) if (y !== null) node("circle", { cx: at[index][0], cy: scales[panel](y), r: 5, class: "halo" }, layer);
    tip.replaceChildren();
    node("b", {}, tip, item.title);
    for (const [name, text, slot] of item.rows) {
      const row = node("div", {}, tip);
      node("span", { class: slot ? `key ${slot}` : "" }, row, name);
      node("span", {}, row, text);
    }
    tip.hidden = false;
    const room = host.clientWidth - tip.offsetWidth, side = at[index][0] + 14;
    tip.style.left = `${Math.max(0, side <= room ? side : Math.min(room, at[index][0] - 14 - tip.offsetWidth))}px`;
    tip.style.top = `${at[index][1] === null ? TITLE + 4 : Math.max(0, at[index][1] - tip.offsetHeight - 12)}px`;
  }
  function hide() { tip.hidden = true; layer.replaceChildren(); shown = -1; }
  function point(event) {
    const box = svg.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    let best = 0, least = Infinity;
    at.forEach(([ax, ay], i) => {
      const distance = ay === null ? Math.abs(ax - x) : Math.hypot(ax - x, ay - y);
      if (distance < least) { least = distance; best = i; }
    });
    if (best !== shown) show(best);
  }
  host.onpointermove = host.onpointerdown = point;
  host.onpointerleave = (event) => { if (event.pointerType === "mouse") hide(); };
  host.tabIndex = 0;
  host.onblur = hide;
  host.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!step) return;
    event.preventDefault();
    show(Math.min(Math.max(shown + step, 0), at.length - 1));
  };
}

function swatch(slot, line, points, parent, hollow, shape) {
  const svg = node("svg", { viewBox: "0 0 22 14", class: "chart", "aria-hidden": "true" }, parent);
  if (line !== null) node("path", { d: "M0,7H22", class: `line ${slot} ${line}` }, svg);
  if (points) node("path", { d: (shape || shapeOf(slot))(11, 7, 3.6), class: `${hollow ? "hollow" : "points"} ${slot}` }, svg);
}

function legend(id, entries) {
  const host = $(id);
  host.replaceChildren();
  for (const [text, slot, line, points, hollow] of entries) {
    const entry = node("span", {}, host);
    swatch(slot, line, points, entry, hollow);
    entry.append(text);
  }
}

// --- an evaluation --------------------------------------------------------------------------------------------------

const METRICS = { psnr_yuv: ["PSNR-YUV", "dB", 2], psnr_y: ["PSNR-Y", "dB", 2], psnr_rgb: ["PSNR-RGB", "dB", 2], ms_ssim: ["MS-SSIM", "", 4], vmaf: ["VMAF", "", 1] };
const BEYOND = 1.1; // times a rate of the constant levels: so far their curve is drawn out at its ends
const hidden = new Set();
const chosen = (id) => $(id).value;
const slotOf = (name) => data.slots[name] || "neutral";
// References are grey: told apart by their dashes and shapes.
const styleOf = (name) => (data.references.includes(name) ? ["dash", "dot", "thin", "dash thin"][data.references.indexOf(name) % 4] : "");
const shapeFor = (name) => (data.references.includes(name) ? SHAPES[data.references.indexOf(name) % SHAPES.length] : shapeOf(slotOf(name)));
const visible = () => data.controllers.filter((name) => !hidden.has(name));
const encodesOf = (name) => data.encodes.filter((encode) => encode.sequence === chosen("sequence") && encode.name === name);
const encodeOf = (name) => encodesOf(name).find((encode) => encode.level === +chosen("level"));
const rateOf = (encode) => encode.actual_bits / encode.duration / 1000;

function drawCurves() {
  const metric = chosen("metric"), [title, unit, digits] = METRICS[metric];
  const curves = [...data.references, ...visible()].map((name) => {
    const points = encodesOf(name).filter((encode) => encode[metric] !== null).sort((a, b) => a.actual_bits - b.actual_bits);
    return { name, slot: slotOf(name), points, x: points.map(rateOf), y: points.map((encode) => encode[metric]) };
  });
  const base = curves.find((curve) => curve.name === "constant");
  // A controller that spends a little less than the lowest level, or more than the highest, is compared too.
  const inside = (x) => {
    const last = base ? base.x.length - 1 : 0;
    if (last < 1 || x < base.x[0] / BEYOND || x > base.x[last] * BEYOND) return null;
    let i = 1;
    while (i < last && x > base.x[i]) i++;
    return base.y[i - 1] + ((base.y[i] - base.y[i - 1]) * Math.log(x / base.x[i - 1])) / (Math.log(base.x[i] / base.x[i - 1]) || 1);
  };
  for (const curve of curves) curve.gain = curve.x.map((x, i) => (inside(x) === null ? null : curve.y[i] - inside(x)));
  const compared = curves.filter((curve) => curve !== base && data.controllers.includes(curve.name));
  const line = (curve, y, label) => [
    { kind: "line", x: curve.x, y, slot: curve.slot, style: styleOf(curve.name), label },
    { kind: "points", x: curve.x, y, slot: curve.slot, r: 3.2, shape: shapeFor(curve.name) },
  ];
  const spots = curves.flatMap((curve) => curve.points.map((encode, i) => ({ curve, encode, i })));
  draw($("rd"), {
    label: `Rate against ${title} of ${chosen("sequence")}`,
    x: { label: "kbit/s (logarithmic)", log: true, domain: extent(curves.flatMap((curve) => curve.x), true) },
    right: 84,
    panels: [
      { title: `${title}${unit && ", " + unit}`, height: 250, domain: extent(curves.flatMap((curve) => curve.y)), marks: curves.flatMap((curve) => line(curve, curve.y, data.references.includes(curve.name) ? curve.name : undefined)) },
      { title: `against a constant quality at the same rate${unit && ", " + unit}`, height: 150, domain: extent([0, ...compared.flatMap((curve) => curve.gain)], false, 0.08), marks: [{ kind: "rule", y: 0, slot: "neutral", style: "dash" }, ...compared.flatMap((curve) => line(curve, curve.gain, curve.name))] },
    ],
    hover: {
      at: spots.map(({ curve, i }) => ({ x: curve.x[i], y: curve.y[i] })),
      item: (index) => {
        const { curve, encode, i } = spots[index], rows = [[title, `${fixed(curve.y[i], digits)} ${unit}`], ["rate", `${fixed(curve.x[i], 1)} kbit/s`]];
        if (encode.target_bits !== null) rows.push(["target", `${fixed(encode.target_bits / encode.duration / 1000, 1)} kbit/s`], ["deviation", `${fixed(encode.delta_r_percent, 2)} %`]);
        if (curve.gain[i] !== null && curve !== base) rows.push(["against constant", `${signed(curve.gain[i], digits)} ${unit}`]);
        return { title: `${curve.name}${encode.level === null ? "" : `, q ${encode.level}`}`, rows, dots: [[0, curve.y[i]], [1, curve.gain[i]]] };
      },
    },
  });
}

function drawFrames() {
  const host = $("frames"), below = chosen("below");
  const shown = visible().map((name) => [name, encodeOf(name)]).filter(([, encode]) => encode);
  const flat = encodeOf("constant");
  const [title, unit, digits] = below === "quality" ? ["quality level", "0 to 63, 63 is best", 2] : ["PSNR-YUV", "dB", 2];
  const all = shown.map(([, encode]) => encode.frames), reference = flat && flat.frames;
  const rates = extent(all.flatMap((frames) => [...frames.bits, ...frames.target_bits]).map(kilo), true);
  const qualities = extent([...all, reference || { [below]: [] }].flatMap((frames) => frames[below]));
  host.replaceChildren();
  for (const [name, encode] of shown) {
    const box = node("section", {}, host), slot = slotOf(name), frames = encode.frames, x = indices(frames.bits);
    const heading = node("h3", { class: `key ${slot}` }, box, `${name} `);
    node("span", {}, heading, `${fixed(encode.delta_r_percent, 2)} % off over all ${x.length} frames`);
    const chart = node("figure", { class: "chart" }, box), intra = frames.intra;
    draw(chart, {
      label: `Bits of each frame of ${encode.sequence} at q ${encode.level} with ${name}, and its ${title}`,
      x: { label: "frame", domain: [-0.8, x.length - 0.2] },
      verticals: intra,
      panels: [
        { title: "kbit of a frame, target as a line (logarithmic)", log: true, height: 130, domain: rates, marks: [
          { kind: "stems", x, y: frames.target_bits.map(kilo), from: frames.bits.map(kilo), slot },
          { kind: "line", x, y: frames.target_bits.map(kilo), slot: "ink", style: "thin", step: true },
          { kind: "points", x, y: frames.bits.map(kilo), slot, shape: SHAPES[0], r: 2 },
          { kind: "points", x: intra, y: intra.map((i) => kilo(frames.bits[i])), slot, style: "hollow", shape: SHAPES[0], r: 3.2 },
        ] },
        { title: `${title}, ${unit}`, height: 84, domain: qualities, marks: [
          ...(reference ? [{ kind: "line", x: indices(reference[below]), y: reference[below], slot: "neutral", style: "thin dash" }] : []),
          { kind: "line", x, y: frames[below], slot },
        ] },
      ],
      hover: {
        at: x.map((value) => ({ x: value })),
        item: (i) => ({
          title: `frame ${i}, ${intra.includes(i) ? "I" : "P"}`,
          rows: [
            ["bits", bitsText(frames.bits[i])], ["target", bitsText(frames.target_bits[i])],
            ...(frames.target_bits[i] ? [["deviation", `${signed((100 * (frames.bits[i] - frames.target_bits[i])) / frames.target_bits[i], 1)} %`]] : []),
            ["quality level", fixed(frames.quality[i], 2)], ["PSNR-YUV", `${fixed(frames.psnr_yuv[i], 2)} dB`],
            ...(reference ? [["at constant q", below === "quality" ? fixed(reference.quality[i], 2) : `${fixed(reference.psnr_yuv[i], 2)} dB`]] : []),
          ],
          dots: [[0, kilo(frames.bits[i])], [1, frames[below][i]]],
        }),
      },
    });
  }
}

const MODELS = { linear: ["dash", (a, b, bits) => a * bits + b], exponential: ["dot", (a, b, bits) => a * Math.exp(b * bits)], logarithmic: ["", (a, b, bits) => a * Math.log(bits) + b] };

function drawModels() {
  const curves = data.curves[chosen("sequence")], select = $("measured");
  $("models").hidden = !curves;
  if (!curves) return;
  const wanted = select.value;
  select.replaceChildren(new Option("all measured frames", "all"), ...curves.frames.map((frame) => new Option(`frame ${frame}`, frame)));
  if ([...select.options].some((option) => option.value === wanted)) select.value = wanted;
  const picked = curves.frames.indexOf(+select.value), fits = curves.fits[picked + 1];
  const spots = curves.bits.flatMap((bits, k) => bits.map((value, i) => ({ frame: curves.frames[k], bits: value, quality: data.curve_levels[i], on: picked < 0 || k === picked })));
  const domain = extent(spots.map((spot) => spot.bits / 1000), true), lows = Math.log(domain[0]), highs = Math.log(domain[1]);
  const x = Array.from({ length: 121 }, (_, i) => Math.exp(lows + ((highs - lows) * i) / 120));
  const marks = [{ kind: "points", x: spots.map((spot) => spot.bits / 1000), y: spots.map((spot) => spot.quality), slot: "accent", style: picked < 0 ? "" : "cloud", r: 3, shape: SHAPES[0] }];
  for (const [name, [a, b]] of Object.entries(fits))
    marks.push({ kind: "line", x, y: x.map((value) => { const q = MODELS[name][1](a, b, 1000 * value); return q < -4 || q > 68 ? null : q; }), style: MODELS[name][0] });
  const on = spots.filter((spot) => spot.on);
  if (picked >= 0) marks.push({ kind: "points", x: on.map((spot) => spot.bits / 1000), y: on.map((spot) => spot.quality), slot: "accent", r: 4, shape: SHAPES[0] });
  draw($("rq"), {
    label: `Bits of inter frames of ${chosen("sequence")} at eight quality levels, with three fitted models`,
    x: { label: "kbit of a frame (logarithmic)", log: true, domain },
    panels: [{ title: "quality level, 63 is best", height: 300, domain: [-4, 68], marks }],
    hover: {
      at: on.map((spot) => ({ x: spot.bits / 1000, y: spot.quality })),
      item: (i) => ({ title: `frame ${on[i].frame}, q ${on[i].quality}`, dots: [[0, on[i].quality]], rows: [["bits", bitsText(on[i].bits)], ...Object.entries(fits).map(([name, [a, b]]) => [`${name} says`, `q ${fixed(Math.max(-999, Math.min(999, MODELS[name][1](a, b, on[i].bits))), 1)}`])] }),
    },
  });
  legend("rq-legend", Object.entries(fits).map(([name, [, , r2]]) => [`${name}, R² ${fixed(r2, 3)}`, "ink", MODELS[name][0], false]));
}

function drawBeliefs() {
  const host = $("truth");
  const shown = visible().map((name) => [name, encodeOf(name)]).filter(([, encode]) => encode && encode.belief);
  $("beliefs").hidden = !shown.length;
  host.replaceChildren();
  const domain = extent(shown.flatMap(([, { belief }]) => belief.bits.map(kilo)), true, 0.12);
  const curve = Array.from({ length: 61 }, (_, i) => domain[0] * (domain[1] / domain[0]) ** (i / 60));
  for (const [name, { belief, frames, sequence }] of shown) {
    const box = node("section", {}, host), slot = slotOf(name), { frame, alpha, beta } = belief, levels = data.curve_levels;
    const what = `${frames.intra.includes(frame) ? "I " : ""}frame ${frame}`;
    const believed = (quality) => (alpha ? Math.exp((quality - beta) / alpha) : null);
    const level = (bits) => Math.min(63, Math.max(0, alpha * Math.log(bits) + beta));
    const mean = levels.reduce((sum, quality, i) => sum + Math.abs(level(belief.bits[i]) - quality), 0) / levels.length;
    const heading = node("h3", { class: `key ${slot}` }, box, `${name} `);
    node("span", {}, heading, alpha ? `${what}, ${fixed(mean, 1)} levels off on average` : `${what}, has no curve of this form`);
    const chart = node("figure", { class: "chart" }, box), x = belief.bits.map(kilo);
    draw(chart, {
      label: `Quality level over bits of frame ${frame} of ${sequence}: real, and as ${name} had them`,
      x: { label: "kbit of the frame (logarithmic)", log: true, domain },
      panels: [{ title: "quality level, 63 is best", height: 150, domain: [-4, 68], marks: [
        ...(alpha ? [{ kind: "line", x: curve, y: curve.map((value) => { const q = alpha * Math.log(1000 * value) + beta; return q < -4 || q > 68 ? null : q; }), slot }] : []),
        { kind: "points", x, y: levels, slot: "ink", shape: SHAPES[0], r: 2.6 },
        ...(belief.points.length ? [{ kind: "points", x: belief.points.map(([, bits]) => (kilo(bits) < domain[0] || kilo(bits) > domain[1] ? null : kilo(bits))), y: belief.points.map(([quality]) => quality), slot, style: "ring", shape: SHAPES[0], r: 4 }] : []),
      ] }],
      hover: {
        at: levels.map((y, i) => ({ x: x[i], y })),
        item: (i) => ({ title: `frame ${frame}, q ${levels[i]}`, dots: [[0, levels[i]]], rows: [["really", bitsText(belief.bits[i])], ...(alpha ? [["believed", bitsText(believed(levels[i]))]] : [])] }),
      },
    });
  }
}

function startRun() {
  for (const name of data.controllers) {
    const chip = node("button", { type: "button", "aria-pressed": "true" }, $("chips"));
    swatch(slotOf(name), "", true, chip);
    chip.append(name);
    chip.onclick = () => {
      if (!hidden.delete(name)) hidden.add(name);
      chip.setAttribute("aria-pressed", String(!hidden.has(name)));
      refresh();
    };
  }
  for (const name of data.references) {
    const entry = node("span", {}, $("chips"));
    swatch(slotOf(name), styleOf(name), true, entry, false, shapeFor(name));
    entry.append(name);
  }
  for (const id of ["sequence", "level", "metric", "below", "measured"]) $(id).onchange = refresh;
}

// --- one encode -----------------------------------------------------------------------------------------------------

function drawEncode() {
  const { time, bits, target_bits, quality, psnr_y, psnr_yuv, intra, second } = data.frames;
  const has = target_bits.some((value) => value !== null), few = time.length <= 600, step = data.frame_seconds;
  const marked = intra.length * 8 < $("encode").clientWidth ? intra : []; // more of them would hide the rest
  const at = (list) => marked.map((i) => list[i]);
  const level = [
    { kind: "line", x: time, y: quality, slot: "s0" },
    { kind: "points", x: at(time), y: at(quality), slot: "s0", style: "hollow", shape: SHAPES[0], r: 3 },
  ];
  const rate = (list) => list.map(kilo);
  const panels = [
    { title: has ? "kbit of a frame, target as a line (logarithmic)" : "kbit of a frame (logarithmic)", log: true, height: 190, domain: extent(rate([...bits, ...target_bits]), true), marks: [
      ...(few && has ? [{ kind: "stems", x: time, y: rate(target_bits), from: rate(bits), slot: "s0" }] : []),
      ...(has ? [{ kind: "line", x: time, y: rate(target_bits), style: "thin", step: true }] : []),
      few ? { kind: "points", x: time, y: rate(bits), slot: "s0", r: 2.4 } : { kind: "line", x: time, y: rate(bits), slot: "s0", style: "thin" },
      { kind: "points", x: at(time), y: at(rate(bits)), slot: "s0", style: "hollow", shape: SHAPES[0], r: 3.4 },
    ] },
  ];
  if (second.some((value) => value !== null)) {
    const wanted = data.target_bitrate === null ? null : data.target_bitrate / 1000;
    panels.push({ title: "kbit/s over the last second", height: 130, domain: [0, extent([...rate(second), wanted])[1]], marks: [
      ...(wanted === null ? [] : [{ kind: "rule", y: wanted, style: "thin", label: `target ${fixed(wanted, 1)}` }]),
      { kind: "line", x: time, y: rate(second), slot: "s0" },
    ] });
  }
  panels.push({ title: "quality level, 0 to 63, 63 is best", height: 110, domain: extent(quality, false, 0.1), marks: level });
  const picture = panels.push({ title: "PSNR, dB", height: 140, domain: extent([...psnr_y, ...psnr_yuv]), marks: [
    { kind: "line", x: time, y: psnr_y, slot: "s1", label: "Y" }, { kind: "line", x: time, y: psnr_yuv, slot: "s0", label: "YUV" },
  ] }) - 1;
  draw($("encode"), {
    label: "Bits, rate, quality level and PSNR of every frame",
    x: { label: "seconds", domain: [time[0] - 0.8 * step, time[time.length - 1] + 0.8 * step] }, right: 38, verticals: at(time), panels,
    hover: {
      at: time.map((x) => ({ x })),
      item: (i) => ({
        title: `frame ${i}, ${intra.includes(i) ? "I" : "P"}, ${fixed(time[i], 3)} s`,
        rows: [
          ["bits", bitsText(bits[i])],
          ...(target_bits[i] ? [["target", bitsText(target_bits[i])], ["deviation", `${signed((100 * (bits[i] - target_bits[i])) / target_bits[i], 1)} %`]] : []),
          ...(second[i] === null ? [] : [["last second", `${fixed(second[i] / 1000, 1)} kbit/s`]]),
          ["quality level", fixed(quality[i], 2)], ["PSNR-YUV", `${fixed(psnr_yuv[i], 2)} dB`, "s0"], ["PSNR-Y", `${fixed(psnr_y[i], 2)} dB`, "s1"],
        ],
        dots: [[0, kilo(bits[i])], ...(picture === 3 ? [[1, kilo(second[i])]] : []), [picture - 1, quality[i]], [picture, psnr_yuv[i]], [picture, psnr_y[i]]],
      }),
    },
  });
  legend("encode-legend", [few ? ["P frame", "s0", null, true] : ["frame", "s0", "thin", false], ...(marked.length ? [["I frame", "s0", null, true, true]] : []), ...(has ? [["target", "ink", "thin", false]] : [])]);
}

// --- tables and start -----------------------------------------------------------------------------------------------

for (const header of document.querySelectorAll("thead th")) {
  header.querySelector("button").onclick = () => {
    const column = header.cellIndex, body = header.closest("table").tBodies[0];
    const descending = header.getAttribute("aria-sort") === "ascending";
    for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const order = (a, b) => {
      const [one, two] = [value(a), value(b)];
      if (one === "–" || two === "–") return (one === "–") - (two === "–"); // what is not known comes last
      const numbers = one !== "" && two !== "" && !isNaN(one) && !isNaN(two);
      return (descending ? -1 : 1) * (numbers ? one - two : one.localeCompare(two, "en", { numeric: true }));
    };
    body.append(...[...body.rows].sort(order));
  };
}

const charts = data.kind === "run" ? [drawCurves, drawFrames, drawBeliefs, drawModels] : [drawEncode];
function refresh() { for (const chart of charts) chart(); }
if (data.kind === "run") startRun();
let lastWidth = 0;
new ResizeObserver(() => {
  const width = document.querySelector("main").clientWidth;
  if (width !== lastWidth) { lastWidth = width; refresh(); }
}).observe(document.querySelector("main"));
