// The page for volumes: choose the files of a case, submit them, watch the job, show its planes. Drawing is in planes.js.
import { $, MIB, UNREACHABLE, alertError as fail, alertText, present, refusal, say, sentence, takeDropped } from "./common.js";
import { Planes } from "./planes.js";

const POLL = 400; // milliseconds between two looks at a job
const state = { model: null, files: [], job: null, planes: null, upload: null, hidden: new Set() };

// ------------------------------------------------------------------------------------------------ the server

async function told(answer) {
  if (answer.ok) return answer.json();
  throw await refusal(answer);
}

const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

/** fetch() tells nothing of an upload's progress; XMLHttpRequest does. */
function upload(form, progress) {
  return new Promise((done, fail) => {
    const request = (state.upload = new XMLHttpRequest());
    request.open("POST", "v1/jobs");
    request.responseType = "json";
    request.upload.addEventListener("progress", (event) => progress(event.loaded, event.total));
    request.addEventListener("load", () => {
      const about = request.response ?? { error: `the server answered ${request.status}`, hint: "" };
      if (request.status === 202) done(about);
      else fail(new Error(sentence(about)));
    });
    request.addEventListener("error", () => fail(new TypeError("no connection")));
    request.addEventListener("abort", () => fail(new DOMException("cancelled", "AbortError")));
    request.send(form);
  });
}

async function submit() {
  const form = new FormData();
  form.append("disable_tta", String(!$("mirror").checked));
  form.append("probabilities", String($("probabilities").checked));
  const stem = stemOf(state.files[0].name);
  const ending = state.model.input.file_ending;
  // The order of the slots decides: the numbers say so to the server, whatever the files were called.
  state.files.forEach((file, i) => form.append("file", file, `${stem}_${String(i).padStart(4, "0")}${ending}`));
  alertText("");
  view("work");
  const size = state.files.reduce((sum, file) => sum + file.size, 0);
  work(`Uploading ${stem}`, 0, `${mib(size)} MiB`);
  try {
    const job = await upload(form, (sent, total) =>
      work(`Uploading ${stem}`, sent / total, sent < total ? `${mib(sent)} of ${mib(total)} MiB` : "checking the files …"));
    state.upload = null;
    location.hash = `job=${job.id}`;
    await follow(job);
  } catch (error) {
    state.upload = null;
    view("drop");
    if (error.name !== "AbortError") fail(error);
  }
}

/** Watch a job to its end and show it. */
async function follow(job) {
  state.job = job;
  view("work");
  const { id } = job;
  let lost = 0;
  while (job.status === "queued" || job.status === "running") {
    work(...howFar(job));
    await pause(POLL);
    if (state.job?.id !== id) return; // cancelled, or another case
    try {
      job = await told(await fetch(`v1/jobs/${id}`));
      lost = 0;
    } catch (error) {
      if (error.status || ++lost > 20) throw error;
    }
    if (state.job?.id !== id) return;
    state.job = job;
  }
  if (job.status === "failed") {
    forget();
    view("drop");
    alertText(sentence(job));
    return;
  }
  show(job);
}

function howFar(job) {
  if (job.status === "queued") {
    const before = job.position - 1;
    return [`${job.case} waits`, 0, before ? `${before} before it, and one at work` : "next"];
  }
  const { done, total } = job.windows;
  if (job.stage === "reading") return [`Reading ${job.case}`, 0, `at most ${count(total)} windows, memory about ${gib(job.memory_bytes)}`];
  if (job.stage === "writing") return [`Writing ${job.case}`, 1, `${seconds(job.seconds)} so far`];
  const left = done > 2 ? `, about ${seconds((job.seconds / done) * (total - done))} left` : "";
  return [`Segmenting ${job.case}`, done / total, `window ${count(done)} of ${count(total)}${left}`];
}

async function cancel() {
  state.upload?.abort();
  const { job } = state;
  forget();
  view("drop");
  if (job) await told(await fetch(`v1/jobs/${job.id}`, { method: "DELETE" })).catch(fail);
}

function forget() {
  state.job = null;
  history.replaceState(null, "", location.pathname + location.search);
}

// ------------------------------------------------------------------------------------------------ what is shown

const count = (number) => number.toLocaleString("en");
const mib = (bytes) => (bytes / MIB).toFixed(1);
const gib = (bytes) => `${(bytes / 1024 / MIB).toFixed(1)} GB`;

function seconds(number) {
  return number < 90 ? `${Math.round(number)} s` : number < 5400 ? `${Math.round(number / 60)} min` : `${(number / 3600).toFixed(1)} h`;
}

function view(name) {
  for (const id of ["drop", "work", "planes"]) $(id).hidden = id !== name;
  $("tools").hidden = $("controls").hidden = name !== "planes";
  if (name !== "planes") say("");
  $("stage").setAttribute("aria-busy", String(name === "work"));
}

function work(what, part, how) {
  $("what").textContent = what;
  $("bar").value = part;
  $("how").textContent = how;
}

function show(job) {
  state.job = job;
  state.hidden.clear();
  view("planes");
  legend(job);
  const at = `v1/jobs/${job.id}`;
  const names = { getLabels: ["labels", job.file_name], getPreview: ["preview", `${job.case}.png`], getProbabilities: ["probabilities", `${job.case}.npz`] };
  for (const [id, [what, name]] of Object.entries(names)) Object.assign($(id), { href: `${at}/${what}`, download: name });
  $("getProbabilities").hidden = !job.links.probabilities;
  opacityText();
  state.planes = new Planes($("planes"), job, look, fail);
  const [z, y, x] = job.shape;
  say([`${job.case}: ${x} × ${y} × ${z} voxels`, `${seconds(job.seconds)} on the server`, ...job.notes].join(" · "));
}

function legend(job) {
  $("legend").replaceChildren(...job.labels.map((label) => {
    const item = document.createElement("li");
    item.innerHTML = `<label><input type="checkbox" checked><span class="swatch"></span><span></span><span class="amount"></span></label>`;
    const [box, swatch, name, amount] = item.firstChild.children;
    swatch.style.background = `rgb(${label.color.join(" ")})`;
    name.textContent = label.name;
    amount.textContent = label.millilitres === null ? `${count(label.voxels)} voxels` : `${millilitres(label.millilitres)} ml`;
    amount.title = `${count(label.voxels)} voxels`;
    box.addEventListener("change", () => {
      if (box.checked) state.hidden.delete(label.id);
      else state.hidden.add(label.id);
      state.planes.redraw();
    });
    return item;
  }));
}

const millilitres = (amount) => (amount >= 100 ? count(Math.round(amount)) : amount.toPrecision(2));

function look() {
  const shown = state.job.labels.filter((label) => !state.hidden.has(label.id));
  return {
    opacity: Number($("opacity").value) / 100, channel: $("channel").value || 0,
    colors: new Map(shown.map((label) => [label.id, label.color])),
  };
}

function opacityText() {
  $("opacityText").value = `${$("opacity").value} %`;
}


// ------------------------------------------------------------------------------------------------ files

const channels = () => state.model.input.channels;
const wanted = () => (state.model.input.channel_files === "one-file" ? 1 : channels().length);

function stemOf(name) {
  const { file_ending: ending } = state.model.input;
  const bare = [ending, ".nii.gz", ".nii"].reduce((n, e) => (n.toLowerCase().endsWith(e) ? n.slice(0, -e.length) : n), name);
  return bare.replace(/_\d{4}$/, "") || "case";
}

/** Files into slots: by their channel number where they have one, else into those that are free. */
function take(files, slot = null) {
  const given = [...(files ?? [])].sort((a, b) => a.name.localeCompare(b.name));
  if (!given.length || state.job) return;
  alertText("");
  const many = wanted();
  if (given.length > many) {
    alertText(`A case of this network has ${many} file${many > 1 ? "s" : ""}, and ${given.length} were given.`);
    return;
  }
  for (const file of given) {
    const number = file.name.match(/_(\d{4})(?=\.)/);
    const free = [...Array(many).keys()].find((i) => !state.files[i]) ?? 0;
    const place = slot ?? (many > 1 && number && Number(number[1]) < many ? Number(number[1]) : free);
    state.files[many > 1 ? place : 0] = file;
  }
  const large = state.files.find((file) => file && file.size > state.model.limits.max_bytes);
  if (large) {
    alertText(`${large.name} has ${mib(large.size)} MiB; the server takes up to ${mib(state.model.limits.max_bytes)} MiB.`);
    state.files = [];
  }
  slots();
  if (many === 1 && state.files[0]) submit();
}

function slots() {
  const many = wanted();
  $("slots").hidden = $("start").hidden = many === 1;
  $("start").disabled = [...Array(many).keys()].some((i) => !state.files[i]);
  $("slots").replaceChildren(...(many === 1 ? [] : channels()).map((channel, i) => {
    const item = document.createElement("li");
    item.innerHTML = `<button type="button"><span></span><span></span></button>`;
    const [name, file] = item.firstChild.children;
    name.textContent = channel.name;
    file.textContent = state.files[i]?.name ?? "choose a file";
    item.firstChild.classList.toggle("filled", Boolean(state.files[i]));
    item.firstChild.addEventListener("click", () => choose(i));
    return item;
  }));
}

let chosenSlot = null;
function choose(slot) {
  chosenSlot = slot;
  $("file").multiple = slot === null && wanted() > 1;
  $("file").click();
}

function startOver() {
  state.files = [];
  state.planes = null;
  forget();
  slots();
  alertText("");
  view("drop");
}

// ------------------------------------------------------------------------------------------------ the network

function setUp(model) {
  state.model = model;
  const { limits } = model;
  const names = channels().map((channel) => channel.name).join(", ");
  const labels = model.labels.filter((label) => label.id !== 0);
  present(model, [["Channels", names], ["Window", model.tiling.window.join(" × ")]], labels, "not measured here");
  const kind = model.input.file_ending === ".nii.gz" ? "NIfTI" : model.input.file_ending;
  $("wanted").textContent = wanted() > 1 ? `Drop ${wanted()} ${kind} files here, one a channel` : `Drop a ${kind} file here`;
  const memory = limits.memory_bytes ? `, cases that need up to ${gib(limits.memory_bytes)} of memory` : "";
  $("limits").textContent = `up to ${Math.round(limits.max_bytes / MIB)} MiB a file${memory}`;
  $("kept").textContent = `after ${seconds(limits.keep_seconds)}, or when you say so`;
  $("mirrorRow").hidden = !model.tiling.mirror_axes.length;
  $("channel").replaceChildren(...channels().map((channel, i) => new Option(channel.name, i)));
  $("channelRow").hidden = channels().length < 2;
  slots();
}

// ------------------------------------------------------------------------------------------------ hands

function connect() {
  $("choose").addEventListener("click", () => choose(null));
  $("start").addEventListener("click", submit);
  $("cancel").addEventListener("click", cancel);
  $("another").addEventListener("click", startOver);
  $("delete").addEventListener("click", async () => {
    const { id } = state.job;
    startOver();
    await told(await fetch(`v1/jobs/${id}`, { method: "DELETE" })).then(() => say("Deleted from the server."), fail);
  });
  $("file").addEventListener("change", () => {
    take($("file").files, chosenSlot);
    $("file").value = "";
  });
  takeDropped((files) => {
    if (state.job?.status === "done") startOver();
    if (!state.upload) take(files);
  });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["opacity", "channel"])
    $(id).addEventListener("input", () => {
      opacityText();
      state.planes?.redraw();
    });
  window.addEventListener("resize", () => state.planes?.cross());
}

/** A page that is opened again goes on with the job in its address. */
async function resume() {
  const id = location.hash.match(/^#job=([0-9a-f]+)$/)?.[1];
  if (!id) return;
  try {
    await follow(await told(await fetch(`v1/jobs/${id}`)));
  } catch (error) {
    forget();
    view("drop");
    fail(error);
  }
}

let reached = false;
try {
  setUp(await (await fetch("v1/model")).json());
  reached = true;
} catch {
  alertText(UNREACHABLE);
}
if (reached) {
  connect();
  await resume();
}
