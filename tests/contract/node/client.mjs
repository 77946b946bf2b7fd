// A session of mechanicd, written from proto/ alone: steps, outages with replay, fencing, checkpoints.

import { randomBytes } from "node:crypto";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import protobuf from "protobufjs";
import { advance, read, scales, write } from "./tuner.mjs";

const PROTO = new URL("../../../proto", import.meta.url).pathname;
const { TunerService } = grpc.loadPackageDefinition(
  loadSync("mechanicd/v1/tuner_service.proto", {
    includeDirs: [PROTO],
    keepCase: true,
    longs: String, // sessions are 64 bits wide
    enums: String,
    defaults: true,
    oneofs: true,
  }),
).mechanicd.v1;

// What googleapis has in google/rpc/status.proto and error_details.proto, as far as it is read here.
const rpc = protobuf.parse(`
  syntax = "proto3";
  package google.rpc;
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
  message BadRequest { repeated FieldViolation field_violations = 1; }
  message FieldViolation { string field = 1; string description = 2; string reason = 3; }
`, { keepCase: true }).root;

const CALL_MS = 5_000;
const ANSWER_MS = 2_000;

/** A refusal by the service, with its reason; one without a reason is an outage. */
export class Refused extends Error {
  constructor(reason, message, fields = {}, metadata = {}) {
    super(message);
    Object.assign(this, { reason, fields, metadata });
  }

  static of(error) {
    const [bytes] = error.metadata?.get("grpc-status-details-bin") ?? [];
    const refused = new Refused("", `${grpc.status[error.code] ?? ""} ${error.details ?? error.message}`);
    if (bytes === undefined) return refused;
    const fields = {};
    for (const { type_url, value } of rpc.lookupType("google.rpc.Status").decode(bytes).details) {
      const type = rpc.lookupType(type_url.split("/").pop());
      const detail = type.toObject(type.decode(value), { defaults: true, arrays: true, objects: true });
      for (const bad of detail.field_violations ?? []) fields[bad.field] = bad.reason;
      if (detail.domain === "mechanicd") Object.assign(refused, { reason: detail.reason, metadata: detail.metadata });
    }
    return Object.assign(refused, { fields });
  }

  get isOutage() {
    return ["", "OWNERSHIP_LOST", "STORE_UNAVAILABLE", "SERVER_DRAINING", "SESSION_UNKNOWN"].includes(this.reason);
  }
}

export class Session {
  #stub;
  #stream = null;
  #waiting = [];
  #session = "0";
  #trainer = randomBytes(8).readBigUInt64LE().toString(); // with the attempt, a call that arrives late does no harm
  #attempt = 0;
  #config;
  #state = null; // of the tuner here
  #scale = [];
  #kept = []; // steps that are not durable: {before, request, scale}

  constructor(target, name, config, options = {}) {
    Object.assign(this, { target, name, given: config, options: { ...options, "grpc.use_local_subchannel_pool": 1 } });
    this.metadata = new grpc.Metadata();
    this.metadata.set("x-mechanicd-run", name);
  }

  get scale() {
    return this.#scale;
  }

  get connected() {
    return this.#stream !== null;
  }

  /** Takes the run; `start` is {}, {after_step} or {tuner_state}. A read mask without the state leaves the client no tuner. */
  async open(start, read_mask) {
    this.#stub ??= new TunerService(this.target, grpc.credentials.createInsecure(), this.options);
    const mask = read_mask && { paths: read_mask.split(",") };
    const ours = { trainer: this.#trainer, attempt: ++this.#attempt, client: "node" };
    const request = { name: this.name, config: this.given, session: this.#session, read_mask: mask, ...ours, ...start };
    const opened = await this.#call("OpenSession", request);
    const coming_back = this.#session !== "0";
    this.#session = opened.session;
    if (!coming_back) {
      this.#scale = opened.scale;
      this.#config = opened.run?.config;
      this.#state = opened.tuner_state.length ? read(opened.tuner_state) : null;
    }
    this.#link();
    return opened;
  }

  /** One step: S of each group, the server's, or in an outage this client's own. */
  async step(step, reductions, base_lr) {
    const before = this.#state;
    const request = { session: this.#session, step, reductions, base_lr };
    if (before) this.#state = advance(before, this.#config, reductions);
    this.#kept.push({ before, request, scale: before && scales(this.#state) });
    try {
      if (!this.connected) await this.#reconnect();
      else this.#scale = await this.#take(this.#kept.at(-1));
    } catch (error) {
      if (!error.isOutage || !before) throw error;
      this.#unlink();
      this.#scale = scales(this.#state);
    }
    return this.#scale;
  }

  /** The tuner's state after the last step, durable, as the server has it. */
  async checkpoint() {
    const { tuner_state, durable_step } = await this.#call("Flush", { session: this.#session, with_tuner_state: true });
    this.#durable(durable_step);
    return { state: tuner_state, own: this.#state && write(this.#state) };
  }

  async close(status) {
    const { run } = await this.#call("CloseSession", { session: this.#session, status, message: "" });
    this.#unlink();
    return run;
  }

  async #reconnect() {
    this.#stub.close(); // a new channel tries at once, where the old one waits for a while
    this.#stub = null;
    const [first] = this.#kept;
    try {
      const { last_step } = await this.open({});
      if (Number(last_step) < first.request.step - 1) throw new Refused("SESSION_UNKNOWN", "the server lost durable steps");
      this.#kept.forEach(({ request }) => (request.session = this.#session));
      for (const kept of this.#kept.filter(({ request }) => request.step > Number(last_step))) this.#scale = await this.#take(kept);
    } catch (error) {
      if (error.reason !== "SESSION_UNKNOWN") throw error;
      this.#unlink();
      const [scale, state] = [this.#scale, this.#state];
      this.#session = "0";
      await this.open({ tuner_state: write(first.before) });
      [this.#scale, this.#state] = [scale, state];
      this.#kept.forEach(({ request }) => (request.session = this.#session));
      for (const kept of [...this.#kept]) this.#scale = await this.#take(kept);
    }
  }

  async #take({ request, scale }) {
    const [result] = await this.#send([request]);
    if (result.error) {
      const { reason, message, bad_fields, metadata } = result.error;
      throw new Refused(reason, message, bad_fields, metadata);
    }
    if (scale && result.scale.some((value, i) => !Object.is(value, scale[i]))) throw new Error(`another S at step ${request.step}`);
    this.#durable(result.durable_step);
    return result.scale;
  }

  #durable(step) {
    while (this.#kept.length && this.#kept[0].request.step <= Number(step)) this.#kept.shift();
  }

  #send(steps) {
    return new Promise((resolve, reject) => {
      const late = setTimeout(() => reject(new Refused("", "no answer in time")), ANSWER_MS);
      const end = (settle) => (value) => (clearTimeout(late), settle(value));
      this.#waiting.push({ resolve: end(resolve), reject: end(reject) });
      this.#stream.write({ steps });
    });
  }

  #link() {
    const stream = this.#stub.StreamSteps(this.metadata);
    const waiting = [];
    [this.#stream, this.#waiting] = [stream, waiting];
    const end = (error) => {
      if (this.#stream === stream) this.#stream = null;
      for (const { reject } of waiting.splice(0)) reject(Refused.of(error));
    };
    stream.on("data", ({ results }) => waiting.shift()?.resolve(results));
    stream.on("error", end);
    stream.on("end", () => end({ details: "the stream ended" }));
  }

  #unlink() {
    this.#stream?.cancel();
    this.#stream = null;
  }

  #call(method, request) {
    return new Promise((resolve, reject) => {
      const deadline = Date.now() + CALL_MS;
      this.#stub[method](request, this.metadata, { deadline }, (error, response) => (error ? reject(Refused.of(error)) : resolve(response)));
    });
  }
}
