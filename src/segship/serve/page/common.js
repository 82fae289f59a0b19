// What both pages share: words of the server and to the reader, facts about the network, files dropped on the page.

export const MIB = 1 << 20;
export const UNREACHABLE = "The server cannot be reached. Is it still running?";

export const $ = (id) => document.getElementById(id);

// ------------------------------------------------------------------------------------------------ words

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** The server's {error, hint} as a sentence. */
export const sentence = (about) => (about.hint ? `${about.error}. ${capital(about.hint)}.` : about.error);

/** The Error, with its status, that an answer which is not ok stands for. */
export async function refusal(answer) {
  const about = await answer.json().catch(() => ({ error: `the server answered ${answer.status}`, hint: "" }));
  return Object.assign(new Error(sentence(about)), { status: answer.status });
}

export function say(text) {
  $("status").textContent = text;
}

export function alertText(text) {
  $("alert").textContent = text;
  $("alert").hidden = !text;
}

export function alertError(error) {
  alertText(error instanceof TypeError ? UNREACHABLE : error.message);
}

// ------------------------------------------------------------------------------------------------ the network

/** The page's head, and the list of facts: `own` are the page's rows, `unknown` is said where nothing executed. */
export function present(model, own, labels, unknown) {
  const { serving } = model;
  document.title = `${model.name} · segship`;
  $("name").textContent = model.name;
  $("about").textContent = model.description || `${model.architecture}, ${serving.precision} on ${serving.engine}`;
  const rows = [
    ["Network", `${model.architecture}, ${model.parameters.toLocaleString("en")} parameters`],
    ["Precision", serving.precision],
    ["Engine", `${serving.engine} ${serving.engine_version} on ${serving.device}`],
    ["Executed", serving.executed ? executed(serving.executed) : unknown],
    ...own,
    ["Labels", labels.map((label) => label.name).join(", ")],
    ...model.accuracy.filter((row) => row.precision === serving.precision).map(accuracy),
    ["Processor", serving.processor.replace(/ \(.*/, "")],
    ["Package", `sha256 ${model.sha256.slice(0, 16)}…`],
  ];
  $("list").replaceChildren(...rows.flatMap(([name, value]) => [tag("dt", name), tag("dd", value)]));
}

function executed(record) {
  const shares = Object.entries(record.convolution_share).sort((a, b) => b[1] - a[1]);
  return `convolutions ${shares.map(([kind, share]) => `${Math.round(100 * share)} % ${kind}`).join(", ")} (${record.evidence})`;
}

function accuracy(row) {
  return ["Accuracy", `${row.metric} ${row.value.toFixed(4)} on ${row.dataset} (${row.cases} cases)`];
}

export function tag(name, text) {
  const element = document.createElement(name);
  element.textContent = text;
  return element;
}

// ------------------------------------------------------------------------------------------------ hands

/** Files dropped anywhere on the page go to `take`. */
export function takeDropped(take) {
  let inside = 0;
  document.addEventListener("dragenter", () => document.body.classList.toggle("over", ++inside > 0));
  document.addEventListener("dragleave", () => document.body.classList.toggle("over", --inside > 0));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    inside = 0;
    document.body.classList.remove("over");
    take(event.dataTransfer?.files);
  });
}
