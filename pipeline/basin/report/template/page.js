// What a reader can do on the page. It loads nothing: all that it shows stands in the page, which is complete without it.
"use strict";
document.documentElement.classList.add("js");

const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const read = id => { const found = document.getElementById(id); return found && JSON.parse(found.textContent); };
const make = (tag, attributes = {}, text = "") => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
};
const save = (name, content) => {
  const link = make("a", { href: URL.createObjectURL(content), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
};
const percent = share => (100 * share).toFixed(1);
const signed = share => (share < 0 ? "−" : "+") + percent(Math.abs(share));

// Tables: sorted by a click on a head, filtered by any column, taken away as text ----------------------------------------------------------

const worth = cell => {
  const said = cell.dataset.value ?? cell.querySelector("data")?.value ?? cell.textContent.trim().replace(/^[–-]$/, "");
  return said === "" || isNaN(said) ? said : Number(said);
};
const words = cell => {  // as it is read, without what stands below a number; the worst case keeps its interval
  const copy = cell.cloneNode(true), number = copy.matches("td.cell") || copy.querySelector("data");
  all(copy.matches("th") ? ".made, .tag" : number && !copy.matches(".worst") ? ".range, .tag, .drop" : "wbr", copy).forEach(part => part.remove());
  all(".range", copy).forEach(part => part.prepend(" "));
  return copy.textContent.replace(/\s+/g, " ").trim();
};

function sortable(table) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  if (body.rows.length < 2) return;
  heads.forEach((head, column) => {
    const button = make("button", { type: "button", class: "sort" });
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const rows = [...body.rows], numbers = rows.some(row => typeof worth(row.cells[column]) === "number");
      const before = head.getAttribute("aria-sort"), up = before ? before === "descending" : !numbers;
      heads.forEach(one => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const order = (one, other) => {
        const [a, b] = [one, other].map(row => worth(row.cells[column]));
        if ((a === "") !== (b === "")) return a === "" ? 1 : -1;  // what was not measured comes last either way
        return (up ? 1 : -1) * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
      };
      body.append(...rows.sort(order));
    });
  });
}

const meets = (value, scale, asked) => {  // "pgd", "50" (at least), ">50", "<=50", "20-50"
  const bounds = /^\s*(>=|<=|>|<)?\s*(-?[\d.]+)\s*(?:[-–]\s*([\d.]+))?\s*$/.exec(asked);
  if (typeof value !== "number" || !bounds) return String(value).toLowerCase().includes(asked.trim().toLowerCase());
  const [, sign, from, to] = bounds, shown = Number((scale * value).toFixed(1));
  if (to) return shown >= from && shown <= to;
  return { ">": shown > from, "<": shown < from, "<=": shown <= from, ">=": shown >= from }[sign ?? ">="];
};

function filtered(table) {
  const rows = [...table.tBodies[0].rows], heads = [...table.tHead.rows[0].cells], line = make("tr", { class: "filters" });
  const count = make("p", { class: "soft live", role: "status" });
  const inputs = heads.map((head, column) => {
    const cell = make("td", { class: head.className }), numbers = rows.some(row => typeof worth(row.cells[column]) === "number");
    const name = head.textContent.trim(), hint = numbers ? "≥" : "contains";
    const title = numbers ? "at least this; also >50, <50, 20-50" : "a part of it";
    cell.append(make("input", { type: "search", placeholder: hint, title, "aria-label": `Filter by ${name}` }));
    line.append(cell);
    return cell.firstChild;
  });
  table.tHead.append(line);
  table.closest(".table").prepend(count);
  line.addEventListener("input", () => {
    const fits = row => inputs.every((input, column) => {
      const cell = row.cells[column], asked = input.value;
      return !asked.trim() || meets(typeof worth(cell) === "string" ? cell.textContent : worth(cell), cell.querySelector("data") ? 100 : 1, asked);
    });
    rows.forEach(row => { row.hidden = !fits(row); });
    const left = rows.filter(row => !row.hidden).length;
    count.textContent = left === rows.length ? "" : `${left} of ${rows.length} rows`;
  });
}

const taken = {
  csv: rows => rows.map(row => row.map(cell => /[",\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell).join(",")).join("\n") + "\n",
  md: ([head, ...rows]) => {
    const line = cells => `| ${cells.map(cell => cell.replace(/[|\\]/g, "\\$&")).join(" | ")} |`;
    return [line(head), line(head.map((_, i) => i ? "---:" : "---")), ...rows.map(line)].join("\n") + "\n";
  },
  tex: ([head, ...rows]) => {
    const letters = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "−": "$-$", "→": "$\\to$", "†": "$^\\dagger$", "ε": "$\\varepsilon$", "–": "--", "∞": "$\\infty$", "×": "$\\times$" };
    const line = cells => cells.map(cell => cell.replace(/[\\~^−→†ε–∞×]|[&%$#_{}]/g, one => letters[one] ?? `\\${one}`)).join(" & ") + " \\\\";
    const top = [`\\begin{tabular}{l${"r".repeat(head.length - 1)}}`, "\\toprule", line(head), "\\midrule"];
    return ["% \\usepackage{booktabs}", ...top, ...rows.map(line), "\\bottomrule", "\\end{tabular}"].join("\n") + "\n";
  },
};

const dialog = document.getElementById("taken");
let takenAs = "";
all("[data-take]").forEach(button => button.addEventListener("click", () => {
  const holder = button.closest(".table"), table = holder.querySelector("table");
  const rows = all("tr:not(.filters)", table).filter(row => !row.hidden).map(row => [...row.cells].map(words));
  takenAs = `${holder.dataset.file}.${button.dataset.take}`;
  dialog.firstElementChild.textContent = taken[button.dataset.take](rows);
  dialog.showModal();
}));
dialog.addEventListener("click", event => {
  const text = dialog.firstElementChild.textContent;
  ({
    copy: () => { getSelection().selectAllChildren(dialog.firstElementChild); document.execCommand("copy"); },
    save: () => save(takenAs, new Blob([text], { type: "text/plain" })),
    close: () => dialog.close(),
  })[event.target.dataset.do]?.();
});
all(".table table").forEach(sortable);
all("table[data-filters]").filter(table => table.tBodies[0].rows.length > 1).forEach(filtered);

// Figures: what a point says, and the figure as a file --------------------------------------------------------------------------------------

const tip = document.getElementById("tip");
for (const plot of all(".plot > svg")) {
  plot.addEventListener("pointerover", event => {
    const says = event.target.closest("svg [aria-label]:not(svg)")?.getAttribute("aria-label");
    tip.hidden = !says;
    tip.textContent = says ?? "";
    const place = event.target.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(innerWidth - tip.offsetWidth - 8, place.x + place.width / 2 - tip.offsetWidth / 2))}px`;
    tip.style.top = `${place.y - tip.offsetHeight - 8 > 0 ? place.y - tip.offsetHeight - 8 : place.bottom + 8}px`;
  });
  plot.addEventListener("pointerleave", () => { tip.hidden = true; });
}
addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

const palette = read("palette");
function alone(svg) {  // in the light theme, whichever the reader has
  const text = new XMLSerializer().serializeToString(svg);
  return text.replace(/var\((--[\w-]+)\)/g, (_, name) => palette[name]);
}
function picture(svg, name) {
  const { width, height } = svg.viewBox.baseVal, canvas = make("canvas"), drawn = new Image();
  const sized = svg.cloneNode(true);
  sized.setAttribute("width", width);
  sized.setAttribute("height", height);
  [canvas.width, canvas.height] = [4 * width, 4 * height];
  drawn.onload = () => {
    const context = canvas.getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(drawn, 0, 0, canvas.width, canvas.height);
    canvas.toBlob(content => save(name, content));
  };
  drawn.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(alone(sized))}`;
}
all(".plot").forEach(plot => plot.addEventListener("click", event => {
  const name = `${plot.dataset.file}.${event.target.dataset.save === "json" ? "vl.json" : event.target.dataset.save}`, svg = plot.querySelector("svg");
  ({
    svg: () => save(name, new Blob([alone(svg)], { type: "image/svg+xml" })),
    png: () => picture(svg, name),
    json: () => save(name, new Blob([plot.querySelector("script").textContent], { type: "application/json" })),
  })[event.target.dataset.save]?.();
}));

// Images: all of them to leaf through, and two models compared on them ------------------------------------------------------------------------

const run = read("run");
if (run) {
  const sheets = all(".sheet"), models = run.models, [width, height] = run.side, block = document.getElementById("album");
  const named = label => run.classes[label] ?? String(label);
  const [model, fate, label] = ["model", "fate", "label"].map(by => block.querySelector(`[data-by=${by}]`));
  const slider = block.querySelector("input"), output = block.querySelector("output"), leaves = block.querySelector(".leaves");
  const option = (value, text) => make("option", { value }, text);
  let shown = [];

  function tile(canvas, which, image) {
    [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const [x, y] = [width * (image % run.columns), height * Math.floor(image / run.columns)];
    context.drawImage(sheets[which], x, y, width, height, 0, 0, width, height);
    return context;
  }
  function perturbation(canvas, clean, attacked) {
    const [one, other] = [clean, attacked].map(context => context.getImageData(0, 0, width, height).data);
    const colour = [...one.keys()].filter(i => i % 4 < 3), most = Math.max(...colour.map(i => Math.abs(other[i] - one[i])));
    [canvas.width, canvas.height] = [width, height];
    const drawn = canvas.getContext("2d").createImageData(width, height);
    drawn.data.fill(255);
    colour.forEach(i => { drawn.data[i] = 128 + (most ? 127 * (other[i] - one[i]) / most : 0); });
    canvas.getContext("2d").putImageData(drawn, 0, 0);
  }
  function fell(one, image) {
    const attack = one.attacks[one.attack[image]], reads = named(one.read[image]);
    if (attack === "clean") return ["plain", `${reads} before any attack`, ""];
    const held = one.held[image];
    if (held === 1) return ["good", `still ${named(run.label[image])}`, `held, nearest try at ${one.distance[image]}`];
    const part = held > 0 ? ` in ${percent(1 - held)}% of draws` : "";
    return ["bad", `read as ${reads}${part}`, `${attack || "masked"}, ${one.distance[image]}`];
  }
  function leaf(who, canvases, [kind, pill, text]) {
    const figure = make("figure"), pair = make("div", { class: "pair" }), says = make("figcaption");
    pair.append(...canvases);
    says.append(make("strong", {}, who), make("span", { class: `tag ${kind}` }, pill), make("span", { class: "soft" }, text));
    figure.append(pair, says);
    return figure;
  }
  function draw() {
    const image = shown[slider.value], canvas = says => make("canvas", { role: "img", "aria-label": says });
    output.textContent = shown.length ? `${Number(slider.value) + 1} of ${shown.length}` : "none";
    if (image === undefined) return leaves.replaceChildren();
    const what = `image ${run.image[image]}`, clean = canvas(`${what}, a ${named(run.label[image])}`), below = tile(clean, 0, image);
    const parts = [leaf("clean", [clean], ["plain", named(run.label[image]), what])];
    models.forEach((one, i) => {
      const attacked = canvas(`${what} attacked on ${one.name}, read as ${named(one.read[image])}`), change = canvas("its perturbation, amplified");
      perturbation(change, below, tile(attacked, i + 1, image));
      parts.push(leaf(one.name, [attacked, change], fell(one, image)));
    });
    leaves.replaceChildren(...parts);
  }
  function show(images, at = 0) {
    shown = images;
    slider.max = Math.max(0, images.length - 1);
    slider.value = at;
    slider.disabled = images.length < 2;
    draw();
  }
  function choose() {
    const of = model.value === "" ? models : [models[model.value]], wanted = fate.value, held = (one, i) => one.held[i] >= 0.5;
    const fits = (one, i) => ({ "": true, held: held(one, i), broken: !held(one, i) })[wanted] ?? one.attacks[one.attack[i]] === wanted.slice(3);
    show([...run.image.keys()].filter(i => (label.value === "" || run.label[i] === Number(label.value)) && of.some(one => fits(one, i))));
  }
  model.append(option("", "any"), ...models.map((one, i) => option(i, one.name)));
  const attacks = [...new Set(models.flatMap(one => one.attacks))].filter(name => name && name !== "clean").sort();
  fate.append(option("", "any"), option("held", "held"), option("broken", "broken"), option("by clean", "wrong before any attack"), ...attacks.map(name => option(`by ${name}`, `broken by ${name}`)));
  label.append(option("", "any"), ...[...new Set(run.label)].sort((a, b) => a - b).map(one => option(one, named(one))));
  [model, fate, label].forEach(one => one.addEventListener("change", choose));
  slider.addEventListener("input", draw);
  all("[data-step]", block).forEach(button => button.addEventListener("click", () => {
    slider.value = (Number(slider.value) + Number(button.dataset.step) + shown.length) % Math.max(1, shown.length);
    draw();
  }));
  Promise.all(sheets.map(sheet => sheet.decode())).then(choose);

  const duel = document.getElementById("duel"), differences = read("differences");
  if (duel) {
    const sides = all("select", duel), says = duel.querySelector(".says"), strip = duel.querySelector(".strip"), fates = duel.querySelector(".fates");
    const kinds = [["both", "both hold"], ["first", "first alone"], ["second", "second alone"], ["neither", "neither"]];
    sides.forEach(side => side.append(...models.map((one, i) => option(i, one.name))));
    [sides[0].value, sides[1].value] = differences.start;
    function compare() {
      const [a, b] = sides.map(side => Number(side.value)), images = [...run.image.keys()];
      const kind = i => kinds[models[a].held[i] >= 0.5 ? (models[b].held[i] >= 0.5 ? 0 : 1) : (models[b].held[i] >= 0.5 ? 2 : 3)][0];
      const found = differences.found[`${Math.min(a, b)} ${Math.max(a, b)}`], [value, low, high, beyond] = found ?? [0, 0, 0, 0];
      const [middle, from, to] = a < b ? [value, low, high] : [-value, -high, -low];
      const verdict = !beyond ? "no more than chance" : middle > 0 ? "more than chance for the first" : "more than chance for the second";
      says.textContent = a === b ? "The same model twice." : `${models[a].name} − ${models[b].name}: ${signed(middle)} points [${signed(from)}, ${signed(to)}] on ${images.length} images, ${verdict}.`;
      strip.replaceChildren(...images.map(i => make("i", { class: kind(i), title: `image ${run.image[i]}, a ${named(run.label[i])}`, "data-image": i })));
      strip.setAttribute("aria-label", "A square an image; the buttons below have the numbers");
      fates.replaceChildren(make("span", {}, "Leaf through"), ...kinds.map(([name, text]) => {
        const those = images.filter(i => kind(i) === name), button = make("button", { type: "button", class: name }, `${text}: ${those.length}`);
        button.disabled = !those.length;
        button.addEventListener("click", () => leafTo(those));
        return button;
      }));
    }
    function leafTo(images, at = 0) {
      [model, fate, label].forEach(one => { one.value = ""; });
      show(images, at);
      block.scrollIntoView({ block: "nearest" });
      slider.focus({ preventScroll: true });
    }
    strip.addEventListener("click", event => {
      if (event.target.dataset.image) leafTo([...run.image.keys()], event.target.dataset.image);
    });
    sides.forEach(side => side.addEventListener("change", compare));
    compare();
  }
}
