// Lets you draw, and reconstructs, denoises, scores and decodes in the browser. This page's folder holds all it needs, so
// any web server can host it. The models are bundles in model/ and, if the page has a denoiser, denoiser/.

import * as ort from "./ort/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // several threads need headers that a plain web server doesn't send

const ARRAYS = { float32: Float32Array, uint8: Uint8Array };
const $ = (id) => document.getElementById(id);
// The last results, for whoever wants to look at them from the console.
const state = (window.autoencoder = { ready: false });
let model, denoiser;

// Runs actions one after another; if an action is called several times before its turn comes, only the last call counts.
const pending = new Map();
let running = Promise.resolve();
function soon(action, ...values) {
  const isQueued = pending.has(action);
  pending.set(action, values);
  if (!isQueued) {
    running = running.then(() => {
      const last = pending.get(action);
      pending.delete(action);
      return action(...last);
    }).catch((error) => ($("status").textContent = `That failed: ${error.message}`));
  }
  return running;
}

async function load(folder, names) {
  const manifest = await (await fetch(`${folder}/manifest.json`)).json();
  const port = manifest.parts[0].inputs[0];
  const [, height, width, channels = 1] = port.shape;
  const parts = {};
  for (const name of names) parts[name] = await ort.InferenceSession.create(`${folder}/${name}.onnx`);
  return { manifest, port, height, width, channels, parts };
}

// The outputs of a part for one image of gray values in [0, 1].
async function runOnImage(network, part, gray) {
  const { port, channels } = network;
  const scale = port.dtype === "uint8" ? 255 : 1;
  const data = ARRAYS[port.dtype].from({ length: gray.length * channels }, (_, i) => {
    const value = gray[Math.floor(i / channels)] * scale;
    return scale === 1 ? value : Math.round(value);
  });
  return network.parts[part].run({ x: new ort.Tensor(port.dtype, data, [1, ...port.shape.slice(1)]) });
}

function show(canvas, values, { height, width, channels }) {
  canvas.width = width;
  canvas.height = height;
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) {
      const channel = channels === 3 ? c : 0;
      image.data[4 * i + c] = 255 * values[i * (values.length / (width * height)) + channel];
    }
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// -- Drawing --------------------------------------------------------------------------------------------------------

const pen = $("drawing").getContext("2d", { willReadFrequently: true });
Object.assign(pen, { lineWidth: 22, lineCap: "round", lineJoin: "round", strokeStyle: "white" });

function position(event) {
  const box = event.target.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

$("drawing").addEventListener("pointerdown", (event) => {
  event.target.setPointerCapture(event.pointerId);
  pen.beginPath();
  pen.moveTo(...position(event));
});
$("drawing").addEventListener("pointermove", (event) => {
  if (!event.buttons) return;
  pen.lineTo(...position(event));
  pen.stroke();
  soon(update);
});
$("clear").addEventListener("click", () => {
  pen.clearRect(0, 0, 280, 280);
  soon(update);
});

// The drawing, prepared like MNIST's digits: its longer side fills 20 of 28 pixels, its centre of mass is in the middle.
function example({ height, width }) {
  const size = pen.canvas.width;
  const ink = pen.getImageData(0, 0, size, size).data.filter((_, i) => i % 4 === 3);
  let [left, right, top, bottom, mass, sumX, sumY] = [size, -1, size, -1, 0, 0, 0];
  for (let i = 0; i < ink.length; i++) {
    if (!ink[i]) continue;
    const [column, row] = [i % size, Math.floor(i / size)];
    [left, right] = [Math.min(left, column), Math.max(right, column)];
    [top, bottom] = [Math.min(top, row), Math.max(bottom, row)];
    mass += ink[i];
    sumX += ink[i] * (column + 0.5);
    sumY += ink[i] * (row + 0.5);
  }
  const gray = new Float32Array(height * width);
  if (!mass) return gray;
  const scale = ((20 / 28) * Math.min(height, width)) / (Math.max(right - left, bottom - top) + 1);
  const small = new OffscreenCanvas(width, height).getContext("2d");
  Object.assign(small, { imageSmoothingQuality: "high" });
  small.translate(width / 2, height / 2);
  small.scale(scale, scale);
  small.drawImage(pen.canvas, -sumX / mass, -sumY / mass);
  const pixels = small.getImageData(0, 0, width, height).data;
  return gray.map((_, i) => pixels[4 * i + 3] / 255);
}

// -- What the models answer ------------------------------------------------------------------------------------------

// A fixed seed, so that the noise doesn't move while you draw. (Marsaglia's xorshift, Box and Muller's transform.)
function* normals(seed = 1) {
  const uniform = () => {
    seed ^= seed << 13;
    seed ^= seed >>> 17;
    seed ^= seed << 5;
    return ((seed >>> 0) + 0.5) / 2 ** 32;
  };
  for (;;) yield Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
}

async function update() {
  const x = example(model);
  show($("x"), x, { ...model, channels: 1 });
  const codes = (await runOnImage(model, "encoder", x))[model.code];
  const reconstruction = (await model.parts.decoder.run({ z: codes })).reconstruction.data;
  const score = (await runOnImage(model, "score", x)).score.data[0];
  show($("reconstruction"), reconstruction, model);
  $("score").textContent = `${score.toFixed(2)} ${model.manifest.score.unit}`;
  $("judgement").textContent = judgement(score);

  const strength = Number($("noise").value), noise = normals();
  const noisy = x.map((value) => Math.min(1, Math.max(0, value + strength * noise.next().value)));
  const denoised = (await runOnImage(denoiser, "autoencoder", noisy)).reconstruction.data;
  show($("noisy"), noisy, { ...model, channels: 1 });
  show($("denoised"), denoised, denoiser);

  if (model.isPlane) {
    model.z = Array.from(codes.data);
    await decode();
  }
  Object.assign(state, { x, noisy, reconstruction, score, denoised, codes: codes.data });
}

function judgement(score) {
  const examples = model.manifest.examples;
  if (!examples) return "";
  const limits = Object.entries(examples.score_quantiles).filter(([, value]) => value < score);
  const share = limits.length ? 100 * Number(limits.at(-1)[0]) : 0;
  return share
    ? `Above the score of ${share} % of the ${examples.count} examples that the model was exported with.`
    : `Among the lowest scores of the ${examples.count} examples that the model was exported with.`;
}

// -- Codes ----------------------------------------------------------------------------------------------------------

function axis(id) {
  const number = Number($(id).value);
  const quantiles = model.manifest.examples?.code_quantiles;
  const [low, high] = quantiles ? [quantiles["0.01"][number], quantiles["0.99"][number]] : [-3, 3];
  return { number, low, span: high - low || 1 };
}

async function decode() {
  const { reconstruction } = await model.parts.decoder.run({
    z: new ort.Tensor("float32", Float32Array.from(model.z), [1, model.z.length]),
  });
  state.decoded = reconstruction.data;
  show($("decoded"), reconstruction.data, model);
  const [across, up] = [axis("across"), axis("up")];
  $("z").textContent = [across, up].map(({ number }) => `z[${number}] = ${model.z[number].toFixed(2)}`).join(", ");
  const plane = $("plane").getContext("2d");
  plane.clearRect(0, 0, 280, 280);
  plane.fillStyle = "orange";
  plane.beginPath();
  // A code beyond the plane is shown at its edge.
  const place = ({ number, low, span }) => 280 * Math.min(1, Math.max(0, (model.z[number] - low) / span));
  plane.arc(place(across), 280 - place(up), 6, 0, 2 * Math.PI);
  plane.fill();
}

async function point(left, top) {
  const [across, up] = [axis("across"), axis("up")];
  model.z[across.number] = across.low + (across.span * left) / 280;
  model.z[up.number] = up.low + (up.span * (280 - top)) / 280;
  await decode();
}

// -- Start ----------------------------------------------------------------------------------------------------------

try {
  const { title, denoiser: hasDenoiser } = await (await fetch("page.json")).json();
  model = await load("model", ["encoder", "decoder", "autoencoder", "score"]);
  denoiser = hasDenoiser ? await load("denoiser", ["autoencoder"]) : model;
  const code = model.manifest.parts[0].outputs[0];
  model.code = code.name;
  model.isPlane = code.shape.length === 2 && code.shape[1] >= 2;
  document.title = document.querySelector("h1").textContent = title;
  $("definition").textContent = `The score is the ${model.manifest.score.definition}.`;
  $("denoiser").textContent = `By the ${denoiser.manifest.family}.`;
  $("codes").hidden = !model.isPlane;
  if (model.isPlane) {
    for (const [id, chosen] of [["across", 0], ["up", 1]]) {
      for (let i = 0; i < code.shape[1]; i++) $(id).add(new Option(`z[${i}]`, i, i === chosen, i === chosen));
      $(id).addEventListener("change", () => soon(decode));
    }
    $("axes").hidden = code.shape[1] === 2;
    for (const kind of ["pointerdown", "pointermove"]) {
      $("plane").addEventListener(kind, (event) => event.buttons && soon(point, ...position(event)));
    }
  }
  $("noise").addEventListener("input", () => soon(update));
  document.querySelector("main").hidden = false;
  $("status").textContent = "Everything runs on this machine; nothing is sent.";
  await update();
  state.ready = true;
} catch (error) {
  $("status").textContent = `The page could not start: ${error.message}`;
  throw error;
}
