// Builds src/ into ../static: index.html, one script and one style sheet under names that hold their content's hash, and a
// gzip of each. Run by `make install`: node build.mjs
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = join(here, "..", "static");

const built = await build({
  absWorkingDir: here,
  entryPoints: ["src/main.js", "src/style.css"],
  bundle: true,
  minify: true,
  format: "esm",
  target: ["es2022"],
  charset: "utf8",
  legalComments: "inline",
  outdir: out,
  write: false,
});

rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });

const names = {};
let totalBytes = 0;

function put(name, bytes) {
  writeFileSync(join(out, name), bytes);
  const zipped = gzipSync(bytes, { level: 9 });
  writeFileSync(join(out, `${name}.gz`), zipped);
  totalBytes += bytes.length;
  console.log(`web/static/${name}: ${bytes.length} bytes, ${zipped.length} gzipped`);
}

for (const file of built.outputFiles) {
  const kind = file.path.endsWith(".css") ? "css" : "js";
  const hash = createHash("sha256").update(file.contents).digest("hex").slice(0, 12);
  names[kind] = `page-${hash}.${kind}`;
  put(names[kind], file.contents);
}

const html = readFileSync(join(here, "src/index.html"), "utf8")
  .replace("page.css", `static/${names.css}`)
  .replace("page.js", `static/${names.js}`);
put("index.html", Buffer.from(html));
console.log(`${totalBytes} bytes in all`);
