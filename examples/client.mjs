// Streams a completion from a Forebay frontend. npm install @grpc/grpc-js @grpc/proto-loader
//   node examples/client.mjs 127.0.0.1:50051 "A generator is"
import { createRequire } from "node:module";
import path from "node:path";
import { fileURLToPath } from "node:url";

const require = createRequire(process.env.NODE_MODULES ? path.join(process.env.NODE_MODULES, "x.js") : import.meta.url);
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [server = "127.0.0.1:50051", prompt = "A generator is"] = process.argv.slice(2);
const protos = path.join(path.dirname(fileURLToPath(import.meta.url)), "..", "protos");
const definition = loader.loadSync("forebay/v1/generation.proto", { includeDirs: [protos], keepCase: true, enums: String });
const { GenerationService } = grpc.loadPackageDefinition(definition).forebay.v1;

const client = new GenerationService(server, grpc.credentials.createInsecure());
const request = { prompt: { text: prompt }, sampling: { max_tokens: 48, temperature: 0 } };
const stream = client.StreamGenerate(request, { deadline: Date.now() + 60_000 });
stream.on("data", ({ deltas }) => deltas.forEach((delta) => process.stdout.write(delta.text)));
stream.on("error", (error) => {
  console.error(`${grpc.status[error.code]}: ${error.details}`);
  process.exitCode = 1;
});
stream.on("end", () => process.stdout.write("\n"));
