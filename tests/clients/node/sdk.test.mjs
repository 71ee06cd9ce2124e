// OpenAI's npm SDK, unchanged: every call that its users make. Run by test_openai_node.py.

import assert from "node:assert/strict";
import { File } from "node:buffer";
import { randomUUID, webcrypto } from "node:crypto";
import { createReadStream } from "node:fs";
import { mkdtemp, readFile, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import OpenAI, { toFile } from "openai";
import { VERSION } from "openai/version";

// Node 20 has them; Debian's Node 18 does not yet, and the SDK asks for just this.
globalThis.File ??= File;
globalThis.crypto ??= webcrypto;

const system = JSON.parse(process.env.TRIPTYCH_TEST_SERVERS);
const PNG = Buffer.from("89504e470d0a1a0a00000000", "hex");
const MAGIC = { video: "ftyp", thumbnail: "WEBP", spritesheet: "\xff\xd8\xff" }; // in the first 16 bytes

function clientOf(url, apiKey = "none", options = {}) {
  return new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0, timeout: 60_000, ...options });
}

const client = clientOf(system.url);
const keyed = clientOf(system.keyed_url, system.api_key);
const stalled = clientOf(system.stalled_url);

async function ended(videos, id) {
  for (;;) {
    const video = await videos.retrieve(id);
    if (video.status === "completed" || video.status === "failed") return video;
    await sleep(20);
  }
}

async function made(fields = {}, owner = client) {
  const video = await ended(owner.videos, (await owner.videos.create({ prompt: "a red circle", ...fields })).id);
  assert.equal(video.status, "completed", JSON.stringify(video.error));
  return video;
}

async function emptied() {
  for await (const video of stalled.videos.list()) await stalled.videos.delete(video.id);
}

function isError(kind, expected) {
  return (error) => {
    assert.ok(error instanceof kind, `${error}`);
    for (const [name, value] of Object.entries(expected)) assert.equal(error[name], value, `${name} of ${error}`);
    assert.ok(error.requestID);
    return true;
  };
}

after(emptied);

test("the version is the pinned one", async () => {
  const own = JSON.parse(await readFile(new URL("package.json", import.meta.url), "utf8"));
  assert.equal(VERSION, own.dependencies.openai);
});

test("create needs a prompt alone", async () => {
  const video = await client.videos.create({ prompt: "a red circle" });
  assert.equal(video.object, "video");
  assert.deepEqual([video.model, video.size, video.seconds], [system.model, "64x64", "0.625"]);
  assert.ok(video._request_id);
  const done = await ended(client.videos, video.id);
  assert.deepEqual([done.status, done.progress, done.error], ["completed", 100, null]);
  assert.ok(Number.isInteger(done.created_at) && Number.isInteger(done.completed_at));
});

test("further fields go along", async () => {
  const video = await made({
    model: system.model,
    size: "96x64",
    seconds: "1",
    negative_prompt: "blurry, low quality",
    num_inference_steps: 6,
    guidance_scale: 7.5,
    seed: 42,
    extra_params: { fps: 16 },
  });
  assert.deepEqual([video.size, video.seconds], ["96x64", "1.0625"]);
  assert.deepEqual([video.seed, video.fps, video.num_frames], [42, 16, 17]);
  assert.ok(video.inference_time_s > 0 && video.peak_memory_mb > 0);
  assert.equal(video.url, `${system.url}/v1/videos/${video.id}/content`);
});

test("reference images are refused by a model that takes none", async () => {
  const refused = isError(OpenAI.BadRequestError, { code: "unsupported_field", param: "input_reference" });
  const references = [
    await toFile(PNG, "first.png", { type: "image/png" }),
    { image_url: "https://pictures.example/first.png" },
    { file_id: "file_1" },
  ];
  for (const input_reference of references) {
    await assert.rejects(client.videos.create({ prompt: "a red circle", input_reference }), refused);
  }
  const path = join(await mkdtemp(join(tmpdir(), "triptych-")), "first.png");
  await writeFile(path, PNG);
  const fromDisk = client.videos.create({ prompt: "a red circle", input_reference: createReadStream(path) });
  await assert.rejects(fromDisk, refused);
});

test("pages and iteration", async () => {
  const ids = [];
  for (let number = 0; number < 5; number++) ids.push((await client.videos.create({ prompt: `video ${number}` })).id);
  const page = await client.videos.list({ limit: 2 });
  assert.deepEqual(page.data.map((video) => video.id), [ids[4], ids[3]]);
  assert.ok(page.hasNextPage());
  const next = await page.getNextPage();
  assert.deepEqual(next.data.map((video) => video.id), [ids[2], ids[1]]);
  const seen = [];
  for await (const video of client.videos.list({ after: ids[0], order: "asc", limit: 2 })) seen.push(video.id);
  assert.deepEqual(seen, ids.slice(1));
});

test("delete", async () => {
  const video = await made();
  const waiting = await stalled.videos.create({ prompt: "a red circle" });
  for (const [owner, id] of [[client, video.id], [stalled, waiting.id]]) {
    const gone = await owner.videos.delete(id);
    assert.deepEqual([gone.id, gone.object, gone.deleted], [id, "video.deleted", true]);
    await assert.rejects(owner.videos.retrieve(id), isError(OpenAI.NotFoundError, { code: "video_not_found" }));
  }
});

for (const variant of [undefined, ...Object.keys(MAGIC)]) {
  test(`download ${variant}`, async () => {
    const video = await made();
    const query = variant === undefined ? {} : { variant };
    const whole = Buffer.from(await (await client.videos.downloadContent(video.id, query)).arrayBuffer());
    assert.ok(whole.subarray(0, 16).toString("latin1").includes(MAGIC[variant ?? "video"]));
    const pieces = [];
    for await (const piece of (await client.videos.downloadContent(video.id, query)).body) pieces.push(piece);
    assert.ok(Buffer.concat(pieces).equals(whole));
  });
}

test("download of what is not there", async () => {
  const waiting = await stalled.videos.create({ prompt: "a red circle" });
  const early = isError(OpenAI.NotFoundError, { code: "video_not_ready" });
  await assert.rejects(stalled.videos.downloadContent(waiting.id), early);
  await emptied();
});

test("a video that fails", async () => {
  const { id } = await stalled.videos.create({ prompt: "a red circle", timeout: 1 });
  const video = await ended(stalled.videos, id);
  assert.equal(video.status, "failed");
  assert.ok(video.error.code && video.error.message);
  const failed = isError(OpenAI.UnprocessableEntityError, { code: "video_failed" });
  await assert.rejects(stalled.videos.downloadContent(id), failed);
});

test("remix", async () => {
  const source = await made({ size: "96x64", seed: 3 });
  const remix = await ended(client.videos, (await client.videos.remix(source.id, { prompt: "a blue square" })).id);
  assert.deepEqual([remix.status, remix.remixed_from_video_id], ["completed", source.id]);
  assert.deepEqual([remix.prompt, remix.size, remix.seed], ["a blue square", "96x64", 3]);
});

test("what no model does is not found", async () => {
  const clip = await toFile(Buffer.from("\0\0\0\x18ftypmp42"), "clip.mp4", { type: "video/mp4" });
  const unserved = isError(OpenAI.NotFoundError, { code: "not_supported" });
  for (const video of [clip, { id: "video_1" }]) {
    await assert.rejects(client.videos.edit({ prompt: "a", video }), unserved);
    await assert.rejects(client.videos.extend({ prompt: "a", seconds: "4", video }), unserved);
  }
  await assert.rejects(client.videos.createCharacter({ name: "a", video: clip }), unserved);
  await assert.rejects(client.videos.getCharacter("char_1"), isError(OpenAI.NotFoundError, { code: "not_found" }));
});

test("images are refused by a model of videos", async () => {
  const refused = isError(OpenAI.BadRequestError, { code: "model_makes_videos", param: "model" });
  const image = await toFile(PNG, "a.png", { type: "image/png" });
  await assert.rejects(client.images.generate({ prompt: "a", size: "1024x1024", n: 1 }), refused);
  await assert.rejects(client.images.edit({ prompt: "a", image }), refused);
  await assert.rejects(client.images.edit({ prompt: "a", image: [image, image] }), refused);
  const masked = isError(OpenAI.BadRequestError, { code: "unsupported_field", param: "mask" });
  await assert.rejects(client.images.edit({ prompt: "a", image, mask: image }), masked);
});

test("models", async () => {
  const models = [];
  for await (const model of client.models.list()) models.push(model);
  assert.deepEqual(models.map((model) => model.id), [system.model]);
  const model = await client.models.retrieve(system.model);
  assert.deepEqual([model.id, model.object, model.owned_by], [system.model, "model", "triptych"]);
  const unknown = isError(OpenAI.NotFoundError, { code: "model_not_found", param: "model" });
  await assert.rejects(client.models.retrieve("nobody/nothing"), unknown);
});

test("a bad field is named", async () => {
  for (const [fields, param, code] of [
    [{ prompt: " " }, "prompt", "invalid_value"],
    [{ size: "63x64" }, "size", "invalid_value"],
    [{ seed: "seven" }, "seed", "invalid_value"],
    [{ lora: { name: "a" } }, "lora", "unsupported_field"],
    [{ colour: "red" }, "colour", "unknown_field"],
  ]) {
    const expected = { status: 400, type: "invalid_request_error", param, code };
    const call = client.videos.create({ prompt: "a red circle", ...fields });
    await assert.rejects(call, isError(OpenAI.BadRequestError, expected));
  }
});

test("a full queue", async () => {
  for (let number = 0; number < 2; number++) await stalled.videos.create({ prompt: "a red circle" });
  const full = isError(OpenAI.RateLimitError, { status: 429, type: "rate_limit_error" });
  await assert.rejects(stalled.videos.create({ prompt: "a red circle" }), full);
  await emptied();
});

test("an idempotency key makes one video", async () => {
  const options = { headers: { "Idempotency-Key": randomUUID() }, maxRetries: 2 };
  const first = await client.videos.create({ prompt: "a red circle" }, options);
  assert.equal((await client.videos.create({ prompt: "a red circle" }, options)).id, first.id);
  const reused = isError(OpenAI.ConflictError, { code: "idempotency_key_reused" });
  await assert.rejects(client.videos.create({ prompt: "a blue square" }, options), reused);
});

test("a webhook is unwrapped", async () => {
  let receive;
  const received = new Promise((resolve) => (receive = resolve));
  const server = createServer(async (request, response) => {
    const pieces = [];
    for await (const piece of request) pieces.push(piece);
    response.end();
    receive([request.headers, Buffer.concat(pieces).toString()]);
  });
  await new Promise((resolve) => server.listen(system.webhook_port, "127.0.0.1", resolve));
  try {
    const webhook_url = `http://127.0.0.1:${system.webhook_port}/hook`;
    const video = await client.videos.create({ prompt: "a red circle", webhook_url });
    const [headers, body] = await received;
    const event = await client.webhooks.unwrap(body, headers, system.webhook_secret);
    assert.deepEqual([event.type, event.data.id], ["video.completed", video.id]);
    await assert.rejects(client.webhooks.unwrap(`${body} `, headers, system.webhook_secret));
  } finally {
    server.closeAllConnections();
    server.close();
  }
});

test("with API keys", async () => {
  const video = await made({}, keyed);
  const content = Buffer.from(await (await keyed.videos.downloadContent(video.id)).arrayBuffer());
  const shared = await fetch(video.url); // shows no key
  assert.ok(Buffer.from(await shared.arrayBuffer()).equals(content));
  const stranger = clientOf(system.keyed_url, "a-key-of-nobody-here");
  const refused = isError(OpenAI.AuthenticationError, { status: 401, code: "invalid_api_key" });
  await assert.rejects(stranger.videos.create({ prompt: "a red circle" }), refused);
  await assert.rejects(stranger.videos.retrieve(video.id), refused);
  await assert.rejects(stranger.models.list(), refused);
});
