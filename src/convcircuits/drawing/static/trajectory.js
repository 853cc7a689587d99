// Maps of images, one for each layer. The slider moves the images between them; a lasso chooses some.

const data = JSON.parse(document.getElementById("trajectory").textContent);
const shownNames = data.names.map((name) => plain(name).replaceAll("\n", " "));
const groupNames = data.groups.map(plain);
const layerNames = data.layers.map((row) => plain(row.alias || row.layer)); // as papers call them, in the explorer
const fullNames = data.layers.map((row) => plain(row.alias ? `${row.alias} (${row.layer})` : row.layer));
const count = data.names.length;
const last = data.layers.length - 1;
const still = matchMedia("(prefers-reduced-motion: reduce)");

// --- what is shown

const FEW = 60; // images that can be shown as pictures without hiding each other
const state = {
  at: 0, colors: data.groups.length ? "group" : "response", pictures: data.pictures.length <= FEW, hovered: -1, lasso: [],
};
let chosen = new Set();
const images = data.pictures.map((source) => make("img", { src: source, alt: "" }));
for (const image of images) image.addEventListener("load", () => state.pictures && draw());
const low = Math.min(...data.response);
const high = Math.max(...data.response);
const most = Math.max(...data.points.map((points) => Math.max(...points.map(([x, y]) => Math.max(Math.abs(x), Math.abs(y)))))) || 1;
const order = data.response.map((_, n) => n).sort((a, b) => data.response[a] - data.response[b]); // the strongest on top

function colorOf(n) {
  if (state.colors === "group") return data.labels[n] < 0 ? inks.none : COLORS[data.labels[n] % COLORS.length];
  const share = high > low ? (data.response[n] - low) / (high - low) : 1;
  return share < 0.5 ? between(ramp[0], ramp[1], 2 * share) : between(ramp[1], ramp[2], 2 * share - 1);
}

/** Where image n is at a layer, which may be between two. */
function place(n, at) {
  const before = Math.min(Math.floor(at), last);
  const after = Math.min(before + 1, last);
  const [x, y] = data.points[before][n];
  const [to, up] = data.points[after][n];
  const size = Math.min(canvas.clientWidth, canvas.clientHeight) / 2 - 24;
  const share = at - before;
  return [
    canvas.clientWidth / 2 + ((x + share * (to - x)) / most) * size,
    canvas.clientHeight / 2 - ((y + share * (up - y)) / most) * size,
  ];
}

// --- the map

const canvas = make("canvas", {
  tabIndex: 0,
  role: "img",
  "aria-label": "Map of the images. Drag to choose images with a lasso; with Shift, add to them; Escape clears.",
  pointerdown: begin,
  pointermove: move,
  pointerup: end,
  pointercancel: () => { state.lasso = []; draw(); },
  pointerleave: () => hover(-1),
});

function draw() {
  const scale = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = Math.round(scale * width);
  canvas.height = Math.round(scale * height);
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  for (const n of order) {
    if (n !== state.hovered) mark(pen, n, 1);
  }
  if (state.hovered >= 0) {
    trail(pen, state.hovered);
    mark(pen, state.hovered, 1.5);
  }
  if (state.lasso.length > 1) {
    pen.beginPath();
    for (const [x, y] of state.lasso) pen.lineTo(x, y);
    pen.closePath();
    pen.strokeStyle = inks.ink;
    pen.lineWidth = 1;
    pen.setLineDash([4, 3]);
    pen.stroke();
    pen.setLineDash([]);
  }
}

function mark(pen, n, size) {
  const [x, y] = place(n, state.at);
  const faded = chosen.size > 0 && !chosen.has(n) && n !== state.hovered;
  pen.globalAlpha = faded ? 0.35 : 1;
  if (state.pictures) {
    const side = 32 * size;
    pen.drawImage(images[n], x - side / 2, y - side / 2, side, side);
    pen.strokeStyle = colorOf(n);
    pen.lineWidth = 2.5;
    pen.strokeRect(x - side / 2, y - side / 2, side, side);
  } else {
    pen.beginPath();
    pen.arc(x, y, 5.5 * size, 0, 7);
    pen.fillStyle = colorOf(n);
    pen.fill();
    pen.strokeStyle = chosen.has(n) ? inks.ink : inks.ground;
    pen.lineWidth = chosen.has(n) ? 1.5 : 0.75;
    pen.stroke();
  }
  pen.globalAlpha = 1;
}

/** The way of an image through all layers. */
function trail(pen, n) {
  pen.beginPath();
  for (let layer = 0; layer <= last; layer++) pen.lineTo(...place(n, layer));
  pen.strokeStyle = inks.soft;
  pen.lineWidth = 1;
  pen.stroke();
  for (let layer = 0; layer <= last; layer++) {
    pen.beginPath();
    pen.arc(...place(n, layer), 2, 0, 7);
    pen.fillStyle = inks.soft;
    pen.fill();
  }
}

function nearest([x, y]) {
  let found = -1;
  let distance = state.pictures ? 22 : 12;
  for (let n = 0; n < count; n++) {
    const [left, top] = place(n, state.at);
    const far = Math.hypot(left - x, top - y);
    if (far < distance) [found, distance] = [n, far];
  }
  return found;
}

const where = (event) => [event.offsetX, event.offsetY];

function begin(event) {
  if (event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId);
  state.lasso = [where(event)];
}

function move(event) {
  if (state.lasso.length) {
    state.lasso.push(where(event));
    draw();
  } else hover(nearest(where(event)));
}

function end(event) {
  const lasso = state.lasso;
  state.lasso = [];
  if (!lasso.length) return;
  const [x, y] = lasso[0];
  const dragged = lasso.some(([left, top]) => Math.hypot(left - x, top - y) > 6);
  const some = dragged ? inside(lasso) : [nearest([x, y])].filter((n) => n >= 0);
  choose(event.shiftKey ? new Set([...chosen, ...some]) : new Set(some));
}

/** The images inside a polygon: those from which a ray crosses its edges an odd number of times. */
function inside(polygon) {
  const found = [];
  for (let n = 0; n < count; n++) {
    const [x, y] = place(n, state.at);
    let odd = false;
    polygon.forEach(([ax, ay], k) => {
      const [bx, by] = polygon[(k + 1) % polygon.length];
      if (ay > y !== by > y && x < ax + ((y - ay) / (by - ay)) * (bx - ax)) odd = !odd;
    });
    if (odd) found.push(n);
  }
  return found;
}

function hover(n) {
  if (n === state.hovered) return;
  state.hovered = n;
  showCard();
  draw();
}

// --- what is known of an image, and of those that are chosen

const card = make("div", { className: "card" });
const heading = make("h2");
const thumbs = make("ul", { className: "thumbs", tabIndex: 0, "aria-label": "Chosen images" });
const lines = make("pre", { tabIndex: 0, "aria-label": "How to find a circuit for the chosen images" });
const hint = make("p", { className: "soft" });
const said = make("span", { className: "soft", role: "status" });
const copyNames = make("button", { type: "button", click: () => copy(list().join("\n"), "names") }, "Copy names");
const copyLines = make("button", { type: "button", click: () => copy(finding(list()), "lines") }, "Copy lines");
const clear = make("button", { type: "button", click: () => choose(new Set()) }, "Clear");

const groupOf = (n) => (data.labels[n] < 0 ? "" : groupNames[data.labels[n]]);
const list = () => [...chosen].sort((a, b) => data.response[b] - data.response[a]).map((n) => data.names[n]);

function showCard() {
  const n = state.hovered;
  if (n < 0) {
    card.replaceChildren(make("p", { className: "soft" }, "Point at an image to see it and its way through the layers. Drag around images to choose them."));
    return;
  }
  const group = groupOf(n);
  card.replaceChildren(
    make("img", { src: data.pictures[n], alt: "" }),
    make(
      "div",
      {},
      make("h2", { dir: "auto" }, shownNames[n]),
      make("p", { className: "soft" }, `response ${data.response[n].toPrecision(3)}`),
      ...(group ? [make("p", { className: "soft" }, `group ${group}`)] : []),
    ),
  );
}

function choose(some) {
  chosen = some;
  const shown = [...chosen].sort((a, b) => data.response[b] - data.response[a]);
  heading.textContent = shown.length ? `${shown.length} chosen` : "None chosen";
  thumbs.replaceChildren(
    ...shown.map((n) =>
      make("li", {}, make("img", {
        src: data.pictures[n], alt: shownNames[n], title: shownNames[n],
        pointerenter: () => hover(n), pointerleave: () => hover(-1),
      })),
    ),
  );
  hint.textContent = !shown.length
    ? "Drag around images, or press the name of a group."
    : shown.length < 4
      ? "Too few to find a circuit and test it on others."
      : explored ? "Found on 60 % of them, measured on the others."
      : `A circuit for them, found on 60 % of them and measured on the others, each once and whole. ${data.finding.command ? "In a shell" : "In Python"}, in the folder where convcircuits trajectory was run:`;
  lines.textContent = shown.length && !explored ? plain(finding(list())) : "";
  lines.hidden = !shown.length || explored;
  for (const button of [copyNames, copyLines, clear]) button.disabled = !shown.length;
  findIt.disabled = shown.length < 4 || Boolean(asked);
  said.textContent = "";
  draw();
}

// --- in the explorer, a circuit for those that are chosen

const explored = "job" in data.finding;
let asked = null; // the id of the job that runs
const size = make("select", { "aria-label": "Kernels to keep" },
  ...[0.2, 0.1, 0.05, 0.02].map((share) => make("option", { value: share, selected: share === 0.05 }, `${100 * share} % of kernels`)));
const findIt = make("button", { type: "button", click: find }, "Find a circuit for them");
const found = make("ul", { className: "found" });

/** Ask the explorer; an error has its sentence. */
async function ask(path, given = {}) {
  const answer = await fetch(`/api/v1/${path}`, { ...given, redirect: "error" });
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  return content;
}

async function find() {
  const some = [...chosen];
  const body = { ...data.finding.job, density: Number(size.value), photographs: some.map((n) => data.finding.photos[n]).sort() };
  const headers = { "content-type": "application/json" };
  const row = make("li", {}, `${some.length} images: waiting …`);
  found.prepend(row);
  asked = row;
  findIt.disabled = true;
  try {
    let job = await ask("jobs", { method: "POST", headers, body: JSON.stringify(body) });
    while (job.state === "queued" || job.state === "running") {
      row.textContent = plain(`${some.length} images: ${job.phase || "waiting"} …`);
      await new Promise((done) => setTimeout(done, 500));
      job = await ask(`jobs/${job.id}`);
    }
    if (job.state !== "done") throw new Error(job.error);
    row.replaceChildren(make("a", { href: `/c/${job.result.circuit}` }, `A circuit for ${some.length} images, ${body.density * 100} % of kernels`));
  } catch (problem) {
    row.textContent = plain(problem.message);
  }
  asked = null;
  findIt.disabled = chosen.size < 4;
}

const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`);

/** The lines that find a circuit for images, in a shell where they are files of a folder, else in Python. */
function finding(names) {
  const { command, program } = data.finding;
  if (!command) return program.replace("CHOSEN", () => JSON.stringify(names, null, 4));
  const stem = `chosen-${digest([command, ...[...names].sort()].join("\n"))}`; // files of its own for each choice
  const cell = (name) => (/[",\r\n]/.test(name) ? `"${name.replaceAll('"', '""')}"` : name);
  const rows = names.map((name) => `${cell(name)},0,0,1e9,1e9`); // boxes around whole photographs, in any of their sizes
  const table = ["name,photo_top,photo_left,photo_height,photo_width", ...rows].map(quoted);
  return `printf '%s\\n' ${table.join(" \\\n  ")} > ${stem}.csv &&\n${command} --boxes ${stem}.csv --out ${stem}.safetensors`;
}

/** A short hash of a text (FNV-1a). */
function digest(text) {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
  return hash.toString(16).padStart(8, "0");
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // A page from a file may not write to the clipboard by itself.
    const area = make("textarea", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  said.textContent = `Copied the ${what}.`;
}

// --- the layers

const slider = make("input", {
  type: "range", min: 0, max: last, step: "any", value: 0, disabled: last === 0,
  "aria-label": "Layer",
  input: () => {
    stop();
    target = Math.round(Number(slider.value));
    show(Number(slider.value));
  },
  change: () => go(Math.round(Number(slider.value))),
  keydown: (event) => {
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, Home: -last, End: last }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    go(Math.max(0, Math.min(last, target + step)));
  },
});
const few = Math.ceil(data.layers.length / 14); // so that the names of layers have room
const ticks = make("div", { className: "ticks" }, ...layerNames.map((name, n) =>
  make("button", { type: "button", title: fullNames[n], "aria-label": fullNames[n], click: () => go(n) },
    n % few && n !== last ? "·" : name)));
const facts = make("p", { className: "facts", "aria-live": "polite" });
let target = 0;
let frame = 0;

function stop() {
  cancelAnimationFrame(frame);
}

/** Move to a layer, in half a second. */
function go(layer) {
  stop();
  target = layer;
  const from = state.at;
  if (still.matches || from === layer) return show(layer);
  const began = performance.now();
  const step = (now) => {
    const t = Math.min(1, Math.max(0, (now - began) / 500));
    show(t < 1 ? from + (layer - from) * t * t * (3 - 2 * t) : layer);
    if (t < 1) frame = requestAnimationFrame(step);
  };
  frame = requestAnimationFrame(step);
}

const figure = (value) => (value === null ? "–" : value.toFixed(2));

function show(at) {
  state.at = at;
  slider.value = at;
  const n = Math.round(at);
  slider.setAttribute("aria-valuetext", fullNames[n]);
  ticks.childNodes.forEach((tick, k) => tick.setAttribute("aria-pressed", k === n));
  const { explained, kept, disparity, shared } = data.layers[n];
  const parts = [];
  if (explained !== null) parts.push(`the map holds ${Math.round(100 * explained)} % of the variance`);
  if (kept !== null) parts.push(`neighbors kept ${figure(kept)}`);
  if (disparity !== null) parts.push(`against ${layerNames[n - 1]}: disparity ${figure(disparity)}, neighbors shared ${figure(shared)}`);
  const text = `${fullNames[n]}: ${parts.join("; ") || "all images are at one place"}.`;
  if (facts.textContent !== text) facts.textContent = text;
  draw();
}

// --- the page

const legend = make("div", { className: "legend" });

function showLegend() {
  if (state.colors === "response") {
    legend.replaceChildren(low.toPrecision(3), make("i", { className: "ramp" }), high.toPrecision(3));
    return;
  }
  legend.replaceChildren(...[...data.groups.keys(), -1].flatMap((label) => {
    const own = data.labels.flatMap((one, n) => (one === label ? [n] : []));
    if (!own.length) return [];
    const spot = make("i");
    spot.style.background = label < 0 ? inks.none : COLORS[label % COLORS.length];
    const name = label < 0 ? "no group" : groupNames[label];
    return [make("button", { type: "button", title: "Choose these images", click: () => choose(new Set(own)) }, spot, `${name} (${own.length})`)];
  }));
}

const colors = make("select", { change: () => { state.colors = colors.value; showLegend(); draw(); } },
  make("option", { value: "response" }, "response"),
  ...(data.groups.length ? [make("option", { value: "group" }, "group")] : []));
colors.value = state.colors;
const pictures = make("input", { type: "checkbox", change: () => { state.pictures = pictures.checked; draw(); } });
pictures.checked = state.pictures;

document.getElementById("page").append(
  make("div", { className: "bar" },
    make("label", {}, "Color by", colors),
    make("label", {}, pictures, "Pictures"),
    legend),
  make("div", { className: "split" },
    make("div", { className: "map" }, canvas),
    make("section", { className: "side" },
      card,
      make("div", { className: "heading" }, heading, make("span", {}, copyNames, " ", clear)),
      thumbs,
      ...(explored
        ? [hint, ...(data.finding.job ? [make("div", { className: "heading" }, size, findIt), found] : [])]
        : [make("div", { className: "heading" }, hint, copyLines), lines]),
      said)),
  make("div", { className: "layers" }, slider, ticks, facts),
  make("details", {},
    make("summary", {}, "Figures of all layers, and remarks"),
    make("table", {},
      make("thead", {}, make("tr", {}, ...["layer", "variance explained", "neighbors kept", "disparity", "neighbors shared"].map((text) => make("th", { scope: "col" }, text)))),
      make("tbody", {}, ...data.layers.map((row, n) => make("tr", {},
        make("th", { scope: "row" }, fullNames[n]),
        ...["explained", "kept", "disparity", "shared"].map((name) => make("td", {}, figure(row[name]))))))),
    make("p", {}, `Neighbors: the share of the ${data.neighbors} nearest that an image has in common, above chance (0 chance, 1 all): kept, between the map and all saliencies of the layer; shared, between the maps of this layer and of the one before. Disparity: what is left of a map that is turned, mirrored and scaled onto the one before (0 the same shape; about ${(1 - 2 / (count - 1)).toFixed(2)} or more by chance).`),
    ...data.notes.map((note) => make("p", {}, plain(note)))),
);

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") choose(new Set());
});
new ResizeObserver(draw).observe(canvas);
followColors(() => { showLegend(); draw(); });
showLegend();
showCard();
choose(new Set());
show(0);
