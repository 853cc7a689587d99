// A map of a layer's units by what their circuits share, and the kernels that many of them keep.

const data = JSON.parse(document.getElementById("atlas").textContent);
const units = data.units;
const placeOf = new Map(units.map((row, n) => [row.unit, n]));
const most = Math.max(...units.map(({ place: [x, y] }) => Math.max(Math.abs(x), Math.abs(y))), 1e-9);

const number = (value) => (value === null || value === undefined ? "–" : value.toFixed(2).replace("-", "−"));
const share = (value) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`);

// --- what is shown

const MEASURES = {
  r2_interior: "R² on the interior",
  r2: "R²",
  r2_rectified: "R² of the rectified map",
  r2_random: "R² of a random circuit",
  r2_average_map: "R² of the average map",
};
const PLACINGS = { pca: "the two principal axes", umap: "a UMAP" };
// A family of nearly all units tells nothing by its color.
const divided = data.families.length > 1 && data.families[0].units.length < 0.8 * units.length;
const state = { colors: divided ? "family" : "r2_interior", hovered: -1, chosen: -1, kernel: -1 };

function colorOf(row) {
  if (state.colors === "family") {
    const alone = row.family < 0 || data.families[row.family].units.length === 1;
    return alone || row.family >= COLORS.length ? inks.none : COLORS[row.family];
  }
  const value = row[state.colors];
  if (value === null || value === undefined) return inks.none;
  const part = Math.min(1, Math.max(0, value)); // below 0 is no better than the mean
  return part < 0.5 ? between(ramp[0], ramp[1], 2 * part) : between(ramp[1], ramp[2], 2 * part - 1);
}

function where(row) {
  const size = Math.min(canvas.clientWidth, canvas.clientHeight) / 2 - 24;
  return [
    canvas.clientWidth / 2 + (row.place[0] / most) * size,
    canvas.clientHeight / 2 - (row.place[1] / most) * size,
  ];
}

// --- the map

const canvas = make("canvas", {
  tabIndex: 0,
  role: "img",
  "aria-label": "Map of the units. Arrow keys walk through them.",
  pointermove: (event) => hover(nearest([event.offsetX, event.offsetY])),
  pointerleave: () => hover(-1),
  click: (event) => choose(nearest([event.offsetX, event.offsetY])),
  keydown: (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") choose(-1);
    if (!step || !units.length) return;
    event.preventDefault();
    choose((state.chosen + step + units.length) % units.length);
  },
});

function draw() {
  const scale = devicePixelRatio || 1;
  canvas.width = Math.round(scale * canvas.clientWidth);
  canvas.height = Math.round(scale * canvas.clientHeight);
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const shown = current();
  if (shown) {
    for (const [unit, overlap] of shown.alike) {
      if (overlap <= 0 || !placeOf.has(unit)) continue;
      pen.beginPath();
      pen.moveTo(...where(shown));
      pen.lineTo(...where(units[placeOf.get(unit)]));
      pen.globalAlpha = Math.min(1, 0.2 + overlap);
      pen.lineWidth = 1 + 3 * overlap;
      pen.strokeStyle = inks.soft;
      pen.stroke();
    }
  }
  const users = state.kernel < 0 ? null : new Set(data.hubs[state.kernel].users);
  for (const row of units) {
    const [x, y] = where(row);
    const marked = row === shown;
    pen.globalAlpha = users && !users.has(row.unit) ? 0.2 : 1;
    pen.beginPath();
    pen.arc(x, y, marked ? 9 : 6, 0, 7);
    pen.fillStyle = colorOf(row);
    pen.fill();
    pen.lineWidth = marked ? 1.5 : 0.75;
    pen.strokeStyle = marked ? inks.ink : inks.ground;
    pen.stroke();
    if (marked || units.length <= 40) {
      pen.fillStyle = inks.ink;
      pen.font = "11px system-ui, sans-serif";
      pen.fillText(String(row.unit), x + 9, y - 6);
    }
  }
  pen.globalAlpha = 1;
}

function nearest([x, y]) {
  let found = -1;
  let distance = 14;
  units.forEach((row, n) => {
    const [left, top] = where(row);
    const far = Math.hypot(left - x, top - y);
    if (far < distance) [found, distance] = [n, far];
  });
  return found;
}

const current = () => units[state.hovered >= 0 ? state.hovered : state.chosen];

function hover(n) {
  if (n === state.hovered) return;
  state.hovered = n;
  canvas.style.cursor = n < 0 ? "default" : "pointer";
  show();
}

function choose(n) {
  state.chosen = n;
  state.hovered = -1;
  chooser.value = n < 0 ? "" : String(n);
  show();
}

function show() {
  card.replaceChildren(...described(current()));
  draw();
}

// --- a unit

const card = make("div", { class: "side", "aria-live": "polite" });

function goTo(unit) {
  return make("button", { click: () => choose(placeOf.get(unit)) }, String(unit));
}

function described(row) {
  if (!row) return overview();
  const figures = [
    ["R²", row.r2, row.r2_average_map, row.r2_random],
    ["R², interior", row.r2_interior, row.r2_average_map_interior, row.r2_random_interior],
    ["R², rectified", row.r2_rectified],
    ["Pearson r", row.pearson],
  ];
  const head = make("tr", {}, ...["", "circuit", "average map", "random"].map((text) => make("th", {}, text)));
  const lines = figures.map(([name, ...values]) =>
    make("tr", {}, make("th", {}, name), ...[0, 1, 2].map((n) => make("td", {}, n < values.length ? number(values[n]) : ""))),
  );
  const family = row.family < 0 ? null : data.families[row.family];
  return [
    make("h2", {}, `${plain(data.layer)}:${row.unit}`),
    make("p", {}, `Its circuit: ${row.verdict}.`),
    make("table", {}, head, ...lines),
    make(
      "p",
      { class: "soft" },
      `${row.kernels} kernels (${share(row.density)}), ${row.effective_kernels} effective; above 0 at ${share(row.positive)} of the positions.`,
    ),
    ...leads(row),
    make("h2", {}, "Units alike"),
    make(
      "table",
      {},
      ...row.alike.map(([unit, overlap]) =>
        make("tr", {}, make("th", {}, goTo(unit)), make("td", {}, `overlap ${number(overlap)}`)),
      ),
    ),
    ...(family && family.units.length > 1
      ? [
          make("h2", {}, `Its family, ${family.units.length} units, mean overlap ${number(family.overlap)}`),
          make("div", { class: "units" }, ...family.units.map(goTo)),
        ]
      : []),
  ];
}

/** Where a unit leads: in the explorer to pages, in a file to its circuit's file if that is beside it. */
function leads({ file, pages }) {
  if (!pages && !file) return [];
  if (!pages)
    return [
      make("p", {}, make("a", { href: file.split("/").map(encodeURIComponent).join("/") }, "The circuit's file")),
      make("pre", {}, `convcircuits diagram ${plain(file)} --open`),
    ];
  const circuit = pages.circuit
    ? make("a", { href: pages.circuit }, "its circuit")
    : make("span", { class: "soft" }, "its circuit's file is missing");
  return [make("p", {}, make("a", { href: pages.unit }, "the unit"), ", ", circuit)];
}

function overview() {
  const asked = data.asked;
  const size = Object.entries(asked.size).map(([name, value]) => `${name} ${value}`).join(", ");
  const problems = Object.entries(data.problems);
  return [
    make("p", {}, "Point at a unit, or walk through them with the arrow keys. Lines lead to the units alike."),
    make(
      "p",
      { class: "soft" },
      `Circuits by ${plain(asked.criterion)}, ${plain(size)}, found on ${asked.images.count} images and measured on ${asked.held_out.count} others. ` +
        "Overlap is the share of kernels in both circuits among those in either, corrected for chance: 0 is that of random circuits with as many kernels in each layer, 1 that of equal ones. " +
        `Units are placed by ${PLACINGS[data.method]} of the overlaps.`,
    ),
    ...data.notes.map((note) => make("p", { class: "soft" }, plain(note))),
    ...(problems.length
      ? [
          make(
            "details",
            {},
            make("summary", {}, problems.length === 1 ? "1 unit has no circuit" : `${problems.length} units have no circuit`),
            ...problems.map(([unit, why]) => make("p", {}, `${unit}: ${plain(why)}`)),
          ),
        ]
      : []),
  ];
}

// --- kernels and layers

function hubs() {
  const rows = data.hubs.map((hub, n) =>
    make(
      "tr",
      { "aria-selected": "false" },
      make(
        "th",
        {},
        make("button", { click: () => chooseKernel(n) }, `${plain(hub.layer)} [${hub.filter}, ${hub.channel}]`),
      ),
      make("td", {}, String(hub.units)),
      make("td", {}, hub.expected.toFixed(1)),
    ),
  );
  const head = make("tr", {}, ...["kernel [filter, channel]", "units", "by chance"].map((text) => make("th", {}, text)));
  return make(
    "section",
    {},
    make("h2", {}, "Kernels that serve many units"),
    make("div", { class: "scroll" }, make("table", { id: "hubs" }, head, ...rows)),
  );
}

function chooseKernel(n) {
  state.kernel = state.kernel === n ? -1 : n;
  document.querySelectorAll("#hubs tr").forEach((row, place) => {
    row.setAttribute("aria-selected", String(place === state.kernel + 1 && state.kernel >= 0));
  });
  draw();
}

function profile() {
  const head = ["layer", "kept", "density", "used by any", "overlap"].map((text) => make("th", {}, text));
  const rows = data.layers.map((row) =>
    make(
      "tr",
      {},
      make("th", {}, plain(row.layer)),
      make("td", {}, row.kept.toFixed(1)),
      make("td", {}, share(row.density)),
      make("td", {}, share(row.used)),
      make("td", {}, number(row.overlap)),
    ),
  );
  return make(
    "section",
    {},
    make("h2", {}, "Layers: mean kernels of a circuit, and mean overlap of two"),
    make("div", { class: "scroll" }, make("table", {}, make("tr", {}, ...head), ...rows)),
  );
}

// --- the page

const colors = make(
  "select",
  { change: () => { state.colors = colors.value; legend(); draw(); } },
  ...(data.families.length ? [make("option", { value: "family" }, "family")] : []),
  ...Object.entries(MEASURES).map(([value, text]) => make("option", { value }, text)),
);
colors.value = state.colors;

const chooser = make(
  "select",
  { change: () => choose(chooser.value === "" ? -1 : Number(chooser.value)) },
  make("option", { value: "" }, "none"),
  ...units.map((row, n) => make("option", { value: String(n) }, String(row.unit))),
);

const keys = make("span", { class: "legend" });
function legend() {
  if (state.colors !== "family") {
    keys.replaceChildren("0 or less", make("span", { class: "ramp", style: "height: 10px; display: inline-block" }), "1");
    return;
  }
  const shown = data.families.filter((family, n) => n < COLORS.length && family.units.length > 1);
  keys.replaceChildren(
    ...shown.map((family, n) => {
      const dot = make("i");
      dot.style.background = COLORS[n];
      return make("span", {}, dot, `${family.units.length} units`);
    }),
    make("span", {}, "gray: others"),
  );
}

document.getElementById("page").append(
  make("div", { class: "bar" }, make("label", {}, "color by ", colors), keys, make("label", {}, "unit ", chooser)),
  make("div", { class: "split" }, make("div", { class: "map" }, canvas), card),
  make("div", { class: "tables" }, hubs(), profile()),
);
followColors(() => { legend(); draw(); });
new ResizeObserver(draw).observe(canvas);
legend();
show();
