// Wraps 32 random bytes with Claviger and unwraps them again.
//
// node client.js HOST:PORT KEY CA CERTIFICATE PRIVATE_KEY
// node client.js unix:/run/claviger/claviger.sock KEY

import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import protobuf from "protobufjs";

const DEADLINE_MS = 10_000;
const path = (file) => fileURLToPath(new URL(file, import.meta.url));
const PROTO = process.env.CLAVIGER_PROTO ?? path("../../../proto/claviger/v1/claviger.proto");
const definition = loadSync(PROTO, { keepCase: true, longs: Number });
const { KeyService } = grpc.loadPackageDefinition(definition).claviger.v1;

// What grpc-status-details-bin holds (google/rpc/status.proto, error_details.proto).
const details = protobuf.parse(`syntax = "proto3";
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message Violation { string field = 1; string description = 2; }
  message BadRequest { repeated Violation field_violations = 1; }
  message Duration { int64 seconds = 1; int32 nanos = 2; }
  message RetryInfo { Duration retry_delay = 1; }`, { keepCase: true }).root;

function connect(target, key, ca, certificate, privateKey) {
  const options = { "grpc.service_config": readFileSync(path("../service-config.json"), "utf8") };
  if (target.startsWith("unix:")) {
    options["grpc.default_authority"] = "localhost";
    return new KeyService(target, grpc.credentials.createInsecure(), options);
  }
  const [caPem, keyPem, certificatePem] = [ca, privateKey, certificate].map((f) => readFileSync(f));
  return new KeyService(target, grpc.credentials.createSsl(caPem, keyPem, certificatePem), options);
}

function call(client, method, request) {
  const metadata = new grpc.Metadata();
  metadata.set("x-request-id", "order-66"); // your own id is recorded beside the daemon's
  const deadline = Date.now() + DEADLINE_MS;
  return new Promise((resolve, reject) => {
    let requestId;
    client[method](request, metadata, { deadline }, (error, answer) =>
      error ? reject(error) : resolve({ answer, requestId }),
    ).on("metadata", (received) => { requestId = received.get("x-request-id")[0]; });
  });
}

/** What the details of a status say: the field that is wrong, when to try again. */
function explain(error) {
  const said = [`${grpc.status[error.code]}: ${error.details}`];
  const decode = (type, bytes) => details.lookupType(type).decode(bytes);
  for (const bytes of error.metadata?.get("grpc-status-details-bin") ?? []) {
    for (const { type_url, value } of decode("Status", bytes).details) {
      if (type_url.endsWith("/google.rpc.BadRequest")) {
        for (const { field, description } of decode("BadRequest", value).field_violations)
          said.push(`field ${field}: ${description}`);
      } else if (type_url.endsWith("/google.rpc.RetryInfo")) {
        const { seconds, nanos } = decode("RetryInfo", value).retry_delay;
        said.push(`try again in ${Number(seconds) * 1000 + nanos / 1e6} ms`);
      }
    }
  }
  return said.join("; ");
}

const [target, key, ...files] = process.argv.slice(2);
const client = connect(target, key, ...files);
try {
  const material = randomBytes(32);
  const { answer: { wrapped } } = await call(client, "Wrap", { key, key_material: material });
  const { answer, requestId } = await call(client, "Unwrap", { key, wrapped });
  if (!material.equals(answer.key_material)) throw new Error("other bytes came back");
  console.log(`unwrapped ${answer.key_material.length} bytes, request id ${requestId}`);
} catch (error) {
  console.error(explain(error));
  process.exitCode = 1;
} finally {
  client.close();
}
