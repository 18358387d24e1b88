// The list on the left, the corrections on the right, and the section between them.

import { Lines, View } from "./view.js";

const POLL_MS = 1500, NOTE_MS = 400, REACH_PX = 12, OVERVIEW_PX = 1024, UNDONE_AT_MOST = 50, KEPT_ALIVE = 60000;
const SETTINGS = ["position_um", "tilt_ml_deg", "tilt_dv_deg", "turn_deg", "size"];
const degrees = (v) => `${(Math.round(10 * v) / 10 || 0).toFixed(1).replace("-", "−")}°`;
const SHOWN = {
  position_um: (v) => `${v.toFixed(0)} µm`, tilt_ml_deg: degrees, tilt_dv_deg: degrees, turn_deg: degrees,
  size: (v) => `${(100 * v).toFixed(0)} %`,
};
const MARKS = { accepted: "✓", rejected: "✗", unsure: "?" };
const one = (selector) => document.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];

const app = {
  sections: [], isWritable: true,
  open: null, // the section that is shown: its answer from the server, and its past and future corrections
  tool: "move", saving: Promise.resolve(), isSaving: 0, saves: 0, isUnsaved: false, isLost: false, locating: "",
};
let held = null; // the object that the mouse drags
let noteTimer = null; // runs while the user writes a note
const view = new View(one("#stage"), picture);
window.review = { app, view }; // for the console and for tests

// --- the server ---

async function ask(method, place, query = {}, body = undefined) {
  const content = body === undefined ? undefined : JSON.stringify(body);
  const keepalive = method === "PUT" && content.length < KEPT_ALIVE; // the change is saved even if the page is closed
  const response = await fetch(`${place}?${new URLSearchParams(query)}`, { method, body: content, keepalive });
  if (response.ok) return response;
  const error = new Error((await response.json().catch(() => ({}))).error ?? response.statusText);
  error.status = response.status;
  throw error;
}

const rowOf = (name) => app.sections.find((row) => row.name === name);
const askJson = async (...request) => (await ask(...request)).json();

function say(text) {
  one("#message").textContent = text;
  one("#notice").hidden = !text;
  one("#offer").hidden = true;
  app.isError = false;
}

function sayError(error) {
  app.isLost = error.name === "TypeError"; // the error of fetch if there was no answer
  say(app.isLost ? "The server does not answer: is `atlalign review` still running?" : error.message);
  app.isError = true;
}

async function picture([left, top, right, bottom], width, height) {
  const query = { name: app.open.name, left, top, right, bottom, width, height, channel: one("#channel").value || 0 };
  try {
    return await createImageBitmap(await (await ask("GET", "picture", query)).blob());
  } catch (error) {
    sayError(error);
    return null;
  }
}

// --- the list ---

async function poll() {
  const { saves } = app;
  try {
    const found = await askJson("GET", "sections");
    if (app.isLost) foundAgain();
    app.isWritable = found.is_writable;
    app.sections = found.sections;
    one("#folder").textContent = found.folder;
    document.title = `Review ${found.folder}`;
    drawList();
    drawEdits();
    if (!app.open && !app.opening) await openFirst();
    const row = rowOf(app.open?.name);
    if (!row) return;
    if (saves !== app.saves || app.isSaving || app.isUnsaved || app.opening || held || noteTimer) return;
    if (row.record && row.record !== app.open.record) await reopen(); // registered again
    else if (row.revision && row.revision !== app.open.revision) await open(row.name); // changed elsewhere
  } catch (error) {
    sayError(error);
  }
}

// The server answers again: send it the changes that it has missed.
function foundAgain() {
  app.isLost = false;
  say("");
  if (app.isUnsaved) save(current());
}

// Open the first section without a verdict. A folder that is being registered may have no section yet.
async function openFirst() {
  const rows = app.sections.filter((row) => row.opens), first = rows.find((row) => !row.verdict) ?? rows[0];
  if (first) await open(first.name);
}

function isListed(row) {
  const show = one("#show").value, words = one("#find").value.toLowerCase();
  if (words && !`${row.name} ${row.reason}`.toLowerCase().includes(words)) return false;
  if (show === "left") return !row.verdict;
  if (show === "flagged") return row.flag !== "pass";
  if (show === "rejected") return row.verdict === "rejected" || row.verdict === "unsure";
  return show !== "changed" || row.is_applied === false;
}

function drawList() {
  const list = one("#list"), rows = app.sections.filter(isListed);
  const items = new Map([...list.children].map((item) => [item.dataset.name, item]));
  list.replaceChildren(...rows.map((row) => drawItem(items.get(row.name) ?? newItem(), row)));
  const count = (verdict) => app.sections.filter((row) => row.verdict === verdict).length;
  const left = app.sections.filter((row) => !row.verdict).length;
  const parts = [`${left} of ${app.sections.length} to review`];
  for (const verdict of ["accepted", "rejected", "unsure"]) if (count(verdict)) parts.push(`${count(verdict)} ${verdict}`);
  one("#counts").textContent = app.sections.length ? parts.join(" · ") : "no section registered yet";
  one("#nothing").hidden = rows.length > 0 || !app.sections.length;
  one("#empty").hidden = app.sections.some((row) => row.opens);
}

function newItem() {
  const item = document.createElement("li");
  for (const name of ["dot", "title", "mark", "why"]) item.append(Object.assign(document.createElement("span"), { className: name }));
  item.addEventListener("click", () => choose(item.dataset.name));
  return item;
}

function choose(name) {
  const row = rowOf(name);
  if (row.opens) open(name);
  else say(`${name} cannot be shown: ${row.reason}`);
}

function drawItem(item, row) {
  const [dot, title, mark, why] = item.children;
  item.dataset.name = row.name;
  item.classList.toggle("closed", !row.opens);
  item.setAttribute("aria-current", String(row.name === app.open?.name));
  dot.className = `dot ${row.flag}`;
  dot.title = row.flag;
  title.textContent = row.name;
  mark.className = `mark ${row.verdict ?? ""}`;
  mark.textContent = `${row.is_applied === false ? "✎ " : ""}${MARKS[row.verdict] ?? ""}`;
  mark.title = row.is_applied === false ? "has changes that have not been applied" : (row.verdict ?? "");
  why.textContent = ["waiting", "at work"].includes(row.state) ? `${row.state} …` : row.reason;
  why.title = (row.reason ?? "").replaceAll("; ", "\n");
  why.hidden = !why.textContent;
  return item;
}

function step(by) {
  const rows = app.sections.filter(isListed).filter((row) => row.opens);
  const at = rows.findIndex((row) => row.name === app.open?.name);
  const next = rows[at + by];
  if (next) open(next.name);
}

// Go to the next section without a verdict, or else to the first one.
function goOn() {
  const rows = app.sections.filter((row) => row.opens);
  const at = rows.findIndex((row) => row.name === app.open?.name);
  const next = [...rows.slice(at + 1), ...rows.slice(0, at)].find((row) => !row.verdict);
  if (next) open(next.name);
}

// --- one section ---

async function open(name, before = null) {
  saveNote();
  const asked = (app.asked = app.opening = {});
  await settled();
  if (asked === app.asked) await load(name, before);
}

async function load(name, before = null) {
  const asked = (app.asked = app.opening = {}), { saves } = app;
  one("#region").textContent = "loading …";
  try {
    const found = await askJson("GET", "section", { name });
    if (asked !== app.asked) return; // another section was chosen in the meantime
    saveNote();
    if (saves !== app.saves && name === app.open?.name) return void (await load(name, before)); // it was changed in the meantime
    app.open = { ...found, ...remembered(found) };
    one("#note").value = found.correction.note;
    say(found.has_image ? "" : "The section's image was not found, so the registered image is shown instead. If the image was moved, give its new folder with --images FOLDER.");
    const channels = one("#channel");
    channels.replaceChildren(...Array.from({ length: found.channels }, (_, k) => new Option(k, k)));
    one("#channel-label").hidden = found.channels < 2;
    if (before) view.clear();
    else view.show(found.size);
    showBefore(before);
    drawList();
    one('#list li[aria-current="true"]')?.scrollIntoView({ block: "nearest" });
    drawEdits();
    await Promise.all([loadOverview(), look(), lookAtTemplate()]);
  } catch (error) {
    sayError(error);
  }
  if (asked !== app.asked) return;
  app.opening = null;
  if (one("#region").textContent === "loading …") one("#region").textContent = "";
}

// Show new results, and keep the former outlines for comparison.
const reopen = () => open(app.open.name, view.lines);

function showBefore(lines) {
  [view.before, app.before] = [lines, null];
  one("#before-label").hidden = !lines;
  one("#before").checked = Boolean(lines);
}

async function loadOverview() {
  const [h, w] = app.open.size, scale = Math.min(1, OVERVIEW_PX / Math.max(h, w)), name = app.open.name;
  const bitmap = await picture([0, 0, w, h], Math.ceil(w * scale), Math.ceil(h * scale));
  if (app.open.name !== name) return;
  view.overview = bitmap;
  view.detail = null;
  view.moved();
}

// Send one request at a time, and keep only the latest state waiting, so that answers never pile up. All callers get the same promise.
function latest(request) {
  let running = null, waiting = null;
  async function work() {
    while (waiting) {
      const [next] = waiting;
      waiting = null;
      try {
        await request(next);
      } catch (error) {
        sayError(error);
      }
    }
    running = null;
  }
  return (state) => {
    waiting = [state];
    return (running ??= work());
  };
}

const look = latest(async (correction = current()) => {
  const name = app.open.name;
  const buffer = await (await ask("POST", "outlines", { name }, correction)).arrayBuffer();
  if (app.open.name !== name) return;
  view.lines = new Lines(buffer);
  view.near = -1;
  view.drawOverlay();
});

const lookAtTemplate = latest(async (correction = current()) => {
  const name = app.open.name;
  if (view.mode === "off") return;
  const bitmap = await createImageBitmap(await (await ask("POST", "template", { name }, correction)).blob());
  if (app.open.name !== name) return;
  view.template = bitmap;
  view.drawTemplate();
});

const current = () => app.open.correction;

// --- changes ---

function change(changes) {
  if (!app.isWritable || !app.open) return;
  app.open.past.push(current());
  app.open.future = [];
  put({ ...current(), ...changes });
}

function put(correction) {
  if (!one("#offer").hidden) closeOffer();
  else if (!app.isError) say("");
  const isMoved = ["anchoring", "moves_plane", "points", "hemisphere"].some((key) => JSON.stringify(correction[key]) !== JSON.stringify(current()[key]));
  app.open.correction = correction;
  if (view.chosen >= correction.points.length) view.chosen = -1;
  save(correction);
  drawEdits();
  if (isMoved) {
    look();
    lookAtTemplate();
  } else view.drawOverlay();
}

// Write changes in their order; each write waits for the previous one.
function save(correction) {
  const section = app.open;
  app.isSaving++;
  app.saves++;
  drawSaved();
  app.saving = app.saving.then(async () => {
    try {
      const { name, revision } = section;
      section.revision = (await askJson("PUT", "correction", { name, revision }, correction)).revision;
      app.isUnsaved = false;
      remember(section);
      if (app.isError) say("");
    } catch (error) {
      await notSaved(section, error);
    }
    app.isSaving--;
    app.saves++;
    drawSaved();
    if (!app.isSaving) poll();
  });
}

// A change that the server refused is undone; a change that did not reach the server is kept and sent again.
async function notSaved(section, error) {
  sayError(error);
  app.isUnsaved = app.isLost;
  if (app.isLost || section !== app.open) return;
  await load(section.name); // not `open`, which waits for all changes to be saved
  say(error.status === 409
    ? "This section was changed elsewhere in the meantime: your last change is undone, and the other change is shown."
    : `Your last change is undone, because it could not be saved: ${error.message}`);
}

function drawSaved() {
  one("#saved").textContent = !app.isWritable ? "read-only" : app.isSaving ? "saving …" : app.isUnsaved ? "not saved" : app.open ? "saved" : "";
}

function undo() {
  const { past, future } = app.open ?? { past: [] };
  if (!past.length || !app.isWritable) return;
  future.push(current());
  put(past.pop());
}

function redo() {
  const { past, future } = app.open ?? { future: [] };
  if (!future.length || !app.isWritable) return;
  past.push(current());
  put(future.pop());
}

// The history of changes survives a reload, unless the section is changed elsewhere.
const memoryOf = (name) => `${location.pathname} ${name}`;

function remember({ name, revision, past, future }) {
  try {
    sessionStorage.setItem(memoryOf(name), JSON.stringify({ revision, past: past.slice(-UNDONE_AT_MOST), future }));
  } catch {
    sessionStorage.removeItem(memoryOf(name)); // no storage is left: the history lasts until the page is closed
  }
}

function remembered({ name, revision }) {
  const found = JSON.parse(sessionStorage.getItem(memoryOf(name)) ?? "null");
  return found?.revision === revision ? { past: found.past, future: found.future } : { past: [], future: [] };
}

function judge(verdict) {
  if (!app.open || !app.isWritable) return;
  const isTaken = current().verdict === verdict;
  change({ verdict: isTaken ? null : verdict });
  const row = rowOf(app.open.name);
  if (row) row.verdict = isTaken ? null : verdict;
  drawList();
  if (!isTaken) app.saving.then(goOn);
}

function drawEdits() {
  const section = app.open, row = rowOf(section?.name);
  for (const id of ["#tools", "#edits-pane", "#apply-pane"]) one(id).inert = !section;
  if (!section) return;
  const correction = current(), isEditable = app.isWritable;
  view.points = correction.points;
  view.areas = correction.areas;
  one("#name").textContent = section.name;
  one("#flag").className = `flag ${row?.flag ?? ""}`;
  one("#flag").textContent = row?.flag ?? "";
  one("#reason").replaceChildren(...reasons(row?.reason));
  for (const button of all(".verdict")) {
    button.setAttribute("aria-pressed", String(button.dataset.verdict === correction.verdict));
    button.disabled = !isEditable;
  }
  if (!noteTimer) one("#note").value = correction.note;
  one("#note").disabled = !isEditable;
  drawPlane(isEditable);
  const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
  one("#edits").textContent = `${count(correction.points.length, "point")}, ${count(correction.areas.length, "damaged area")}`;
  one("#delete").disabled = !isEditable || view.chosen < 0;
  one("#clear").disabled = !isEditable || !correction.areas.length;
  one("#undo").disabled = !isEditable || !section.past.length;
  one("#redo").disabled = !isEditable || !section.future.length;
  one("#hemisphere").value = correction.hemisphere ?? section.hemisphere;
  one("#hemisphere").disabled = !isEditable;
  const isBusy = ["waiting", "at work"].includes(row?.state), isNeeded = row?.is_applied === false;
  one("#apply").disabled = !isEditable || Boolean(row?.why_not) || isBusy;
  one("#apply").classList.toggle("needed", isNeeded && !isBusy);
  const failed = row?.state && !isBusy && row.state !== "done" ? row.state : "";
  one("#state").textContent = !isEditable ? "This folder is read-only, so nothing can be changed."
    : isBusy ? `${row.state} …` : failed || row?.why_not || (isNeeded ? "Not applied yet." : "");
  drawSaved();
  view.drawOverlay();
}

// One reason per line.
function reasons(text) {
  return (text ?? "").split("; ").filter(Boolean).map((reason) => Object.assign(document.createElement("li"), { textContent: reason }));
}

function drawPlane(isEditable) {
  const plane = app.open.plane;
  one("#plane").hidden = !plane;
  if (!plane) return;
  for (const name of SETTINGS) {
    const slider = one(`#${name}`);
    if (name === "position_um" && slider.dataset.of !== app.open.record) {
      slider.dataset.of = app.open.record;
      const middle = Math.round(plane[name] / 25) * 25;
      [slider.min, slider.max] = [middle - 2000, middle + 2000];
    }
    if (document.activeElement !== slider || !app.isTurning) slider.value = plane[name];
    slider.disabled = !isEditable;
    one(`#${name}-value`).textContent = SHOWN[name](plane[name]);
  }
  for (const id of ["#flip", "#reset-plane", "#spread", "#copy", "#locate"]) one(id).disabled = !isEditable;
  const isLocating = app.locating === app.open.name;
  one("#locate").disabled ||= isLocating || Boolean(rowOf(app.open.name)?.why_not);
  one("#locate").textContent = isLocating ? "searching …" : "locate from here";
  one("#spread").disabled ||= !current().moves_plane;
  one("#copy").disabled ||= !current().moves_plane;
  one("#reset-plane").disabled ||= !current().moves_plane;
}

// --- the plane ---

// Wait until the last change of a slider is known, and all changes are saved.
async function settled() {
  await app.turning;
  await app.saving;
}

const turn = latest(async ({ plane, isFinal }) => {
  const section = app.open;
  const { anchoring } = await askJson("POST", "plane", { name: section.name }, { plane, correction: current() });
  if (section !== app.open) return;
  section.plane = plane;
  if (isFinal) change({ anchoring, moves_plane: true });
  else {
    const tentative = { ...current(), anchoring, moves_plane: true };
    await Promise.all([look(tentative), lookAtTemplate(tentative)]);
  }
});

for (const name of SETTINGS) {
  const slider = one(`#${name}`), wanted = () => ({ ...app.open.plane, [name]: Number(slider.value) });
  slider.addEventListener("input", () => {
    app.isTurning = true;
    one(`#${name}-value`).textContent = SHOWN[name](Number(slider.value));
    turn({ plane: wanted(), isFinal: false });
  });
  slider.addEventListener("change", () => {
    app.isTurning = false;
    app.turning = turn({ plane: wanted(), isFinal: true });
  });
}

one("#flip").addEventListener("click", () => {
  app.turning = turn({ plane: { ...app.open.plane, is_flipped: !app.open.plane.is_flipped }, isFinal: true });
});

// Search near the plane that is shown; the user decides whether to keep the plane that is found.
async function locate() {
  await settled();
  const section = app.open, from = section && current();
  if (!section || one("#locate").disabled || one("#plane").hidden) return;
  app.locating = section.name;
  drawEdits();
  try {
    const found = await askJson("POST", "locate", { name: section.name }, from);
    if (section !== app.open || current() !== from) say(`${section.name} was changed or left during the search: the plane that was found is not used.`);
    else if (found.is_moved) offerPlane(found);
    else say("No plane nearby is clearly more like this section.");
  } catch (error) {
    sayError(error);
  }
  app.locating = "";
  drawEdits();
}

function offerPlane({ anchoring, plane, likeness, likeness_before: before }) {
  const former = app.open.plane, lines = view.lines;
  change({ anchoring, moves_plane: true });
  app.open.plane = plane;
  showBefore(lines);
  const by = Math.round(plane.position_um - former.position_um);
  const where = by ? `${Math.abs(by)} µm ${by < 0 ? "in front of" : "behind"} yours` : "at the same position";
  say(`Found a plane ${where}, tilted by ${degrees(plane.tilt_ml_deg)} and ${degrees(plane.tilt_dv_deg)}. `
    + `Likeness: ${before.toFixed(2)} before, ${likeness.toFixed(2)} now. Apply registers the section there.`);
  one("#offer").hidden = false;
}

function closeOffer() {
  say("");
  showBefore(null);
  view.drawOverlay();
}

one("#dismiss").addEventListener("click", () => (one("#offer").hidden ? say("") : closeOffer()));
one("#keep").addEventListener("click", closeOffer);
one("#take-back").addEventListener("click", () => { undo(); refreshPlane(); });
one("#locate").addEventListener("click", locate);
one("#hemisphere").addEventListener("change", ({ target }) => {
  change({ hemisphere: target.value === app.open.hemisphere ? null : target.value });
});

one("#reset-plane").addEventListener("click", async () => {
  change({ anchoring: app.open.former, moves_plane: false });
  await refreshPlane();
});

// Undo and redo change only the anchoring; the server computes its settings.
async function refreshPlane() {
  const section = app.open;
  if (!section) return;
  await app.saving;
  const { plane } = await askJson("GET", "section", { name: section.name });
  if (section !== app.open) return;
  section.plane = plane;
  drawEdits();
}

async function spread(copies) {
  await settled();
  try {
    const { changed } = await askJson("POST", "spread", { name: app.open.name, copies });
    say(changed.length ? `Also moved: ${changed.join(", ")}. Press Apply on each to register it again.` : "There is no section in between. Set the plane of another section first.");
    await poll();
  } catch (error) {
    sayError(error);
  }
}

one("#spread").addEventListener("click", () => spread(0));
one("#copy").addEventListener("click", () => spread(1));

// --- points and damage ---

const overlay = one("#overlay");
const at = (event) => [event.offsetX, event.offsetY];
const brushRadius = () => Number(one("#brush").value) / view.zoom;

function pointAt(place) {
  const reach = REACH_PX / view.zoom;
  return current().points.findIndex(([, , x, y]) => Math.hypot(x + 0.5 - place[0], y + 0.5 - place[1]) < reach);
}

function grab(place) {
  const chosen = pointAt(place);
  if (chosen >= 0) return { points: current().points.map((point) => [...point]), number: chosen };
  const near = view.lines && view.hasOutlines ? view.lines.closest(place, REACH_PX / view.zoom) : -1;
  if (near < 0) return null;
  const [ml, dv] = [view.lines.reference[2 * near], view.lines.reference[2 * near + 1]];
  const points = [...current().points.map((point) => [...point]), [ml, dv, place[0] - 0.5, place[1] - 0.5]];
  return { points, number: points.length - 1 };
}

overlay.addEventListener("pointerdown", (event) => {
  if (!app.open) return;
  overlay.setPointerCapture(event.pointerId);
  overlay.focus();
  const place = view.toPlace(at(event));
  if (event.button !== 0 || !app.isWritable) held = { kind: "pan", from: at(event) };
  else if (app.tool === "brush") {
    if (event.shiftKey) removeArea(place);
    else {
      view.stroke = { places: [place], radius: brushRadius() };
      held = { kind: "stroke" };
    }
  } else {
    const grabbed = grab(place);
    held = grabbed ? { kind: "point", ...grabbed, from: at(event), isMoved: false } : { kind: "pan", from: at(event) };
    view.chosen = grabbed ? grabbed.number : -1;
  }
  drawEdits();
});

overlay.addEventListener("pointermove", (event) => {
  if (!app.open) return;
  const here = at(event), place = view.toPlace(here);
  if (!held) {
    const isPoint = app.tool === "move" && pointAt(place) >= 0;
    view.near = app.tool === "move" && view.lines && view.hasOutlines && !isPoint ? view.lines.closest(place, REACH_PX / view.zoom) : -1;
    overlay.style.cursor = app.tool === "brush" ? "crosshair" : isPoint || view.near >= 0 ? "grab" : "default";
    view.drawOverlay();
    name(place);
  } else if (held.kind === "pan") {
    view.pan([here[0] - held.from[0], here[1] - held.from[1]]);
    held.from = here;
  } else if (held.kind === "stroke") {
    view.stroke.places.push(place);
    view.drawOverlay();
  } else {
    held.isMoved ||= Math.hypot(here[0] - held.from[0], here[1] - held.from[1]) > 2;
    if (!held.isMoved) return;
    held.points[held.number].splice(2, 2, place[0] - 0.5, place[1] - 0.5);
    view.points = held.points;
    view.drawOverlay();
    look({ ...current(), anchoring: current().anchoring ?? app.open.former, points: held.points });
  }
});

overlay.addEventListener("pointerup", async () => {
  const done = held;
  held = null;
  if (done?.kind === "point" && done.isMoved) {
    change({ anchoring: current().anchoring ?? app.open.former, points: done.points });
  } else if (done?.kind === "point" && done.number >= current().points.length) view.chosen = -1;
  else if (done?.kind === "stroke") await paint();
  drawEdits();
});

async function paint() {
  const { places, radius } = view.stroke;
  try {
    const { area } = await askJson("POST", "stroke", { radius }, places);
    view.stroke = null;
    change({ areas: [...current().areas, area] });
  } catch (error) {
    view.stroke = null;
    sayError(error);
  }
}

function removeArea([x, y]) {
  const context = overlay.getContext("2d");
  const isInside = (area) => {
    const path = new Path2D();
    area[0].forEach(([a, b], number) => (number ? path.lineTo(a, b) : path.moveTo(a, b)));
    context.save();
    context.setTransform(1, 0, 0, 1, 0, 0);
    const found = context.isPointInPath(path, x, y);
    context.restore();
    return found;
  };
  const number = current().areas.findLastIndex(isInside);
  if (number >= 0) change({ areas: current().areas.filter((_, k) => k !== number) });
}

function removePoint() {
  if (view.chosen < 0) return;
  const chosen = view.chosen;
  view.chosen = -1;
  change({ points: current().points.filter((_, k) => k !== chosen) });
}

const name = latest(async ([x, y]) => {
  const query = { name: app.open.name, x: (x - 0.5).toFixed(2), y: (y - 0.5).toFixed(2) };
  one("#region").textContent = (await askJson("POST", "region", query, current())).region;
});

overlay.addEventListener("wheel", (event) => {
  event.preventDefault();
  view.zoomBy(Math.exp(-event.deltaY / (event.deltaMode ? 12 : 400)), at(event));
}, { passive: false });
overlay.addEventListener("contextmenu", (event) => event.preventDefault());

// --- controls ---

function take(tool) {
  app.tool = tool;
  for (const button of all(".tool")) button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
  view.near = -1;
  view.drawOverlay();
}

function setMode(mode) {
  one("#mode").value = view.mode = mode;
  view.isBlank = false;
  view.drawTemplate();
  if (app.open && mode !== "off") lookAtTemplate();
}

async function apply() {
  await settled();
  try {
    await ask("POST", "apply", { name: app.open.name });
    await poll();
  } catch (error) {
    sayError(error);
  }
}

for (const button of all(".tool")) button.addEventListener("click", () => take(button.dataset.tool));
for (const button of all(".verdict")) button.addEventListener("click", () => judge(button.dataset.verdict));
one("#mode").addEventListener("change", (event) => setMode(event.target.value));
one("#blend").addEventListener("input", (event) => {
  view.blend = Number(event.target.value) / 100;
  if (view.mode === "off") setMode("fade");
  view.drawTemplate();
});
one("#outlines").addEventListener("change", (event) => {
  view.hasOutlines = event.target.checked;
  view.drawOverlay();
});
one("#brightness").addEventListener("input", (event) => {
  one("#section").style.filter = `brightness(${event.target.value}%)`;
});
one("#channel").addEventListener("change", loadOverview);
one("#brush").addEventListener("input", (event) => { one("#brush-value").textContent = `${event.target.value} px`; });
one("#zoom-in").addEventListener("click", () => view.zoomBy(1.4));
one("#zoom-out").addEventListener("click", () => view.zoomBy(1 / 1.4));
one("#fit").addEventListener("click", () => view.fit());
one("#delete").addEventListener("click", removePoint);
one("#clear").addEventListener("click", () => change({ areas: [] }));
one("#undo").addEventListener("click", () => { undo(); refreshPlane(); });
one("#redo").addEventListener("click", () => { redo(); refreshPlane(); });
one("#apply").addEventListener("click", apply);
one("#before").addEventListener("change", (event) => {
  [view.before, app.before] = event.target.checked ? [app.before ?? view.before, null] : [null, view.before];
  view.drawOverlay();
});
one("#show").addEventListener("change", drawList);
for (const menu of all("select")) {
  // After a choice with the mouse, keys act on the section again. Letters that are typed to choose still go to the menu.
  let isTyped = false;
  menu.addEventListener("pointerdown", () => { isTyped = false; });
  menu.addEventListener("keydown", () => { isTyped = true; });
  menu.addEventListener("change", () => { if (!isTyped) menu.blur(); });
}
one("#find").addEventListener("input", drawList);

one("#note").addEventListener("input", () => {
  clearTimeout(noteTimer);
  noteTimer = setTimeout(saveNote, NOTE_MS);
});
addEventListener("pagehide", saveNote);

function saveNote() {
  if (!noteTimer) return;
  clearTimeout(noteTimer);
  noteTimer = null;
  change({ note: one("#note").value });
}

const KEYS = {
  ArrowDown: () => step(1), ArrowUp: () => step(-1), j: () => step(1), k: () => step(-1),
  a: () => judge("accepted"), r: () => judge("rejected"), u: () => judge("unsure"),
  v: () => take("move"), b: () => take("brush"), o: () => one("#outlines").click(),
  l: locate, t: () => setMode(view.mode === "off" ? "fade" : "off"),
  "+": () => view.zoomBy(1.4), "=": () => view.zoomBy(1.4), "-": () => view.zoomBy(1 / 1.4), 0: () => view.fit(),
  Delete: removePoint, Backspace: removePoint,
};

document.addEventListener("keydown", (event) => {
  if (event.target.matches("textarea, select, input[type=search]")) return;
  const isRange = event.target.matches("input[type=range]") && event.key.startsWith("Arrow");
  if (isRange) return;
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") {
    event.preventDefault();
    (event.shiftKey ? redo : undo)();
    refreshPlane();
  } else if (!event.ctrlKey && !event.metaKey && !event.altKey && KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key]) {
    event.preventDefault();
    KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key]();
  }
});

one("#brush-value").textContent = `${one("#brush").value} px`;
await poll();
setInterval(poll, POLL_MS);
