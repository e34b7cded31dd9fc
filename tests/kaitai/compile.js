// Compiles spec/kcap.ksy to the Python parser beside this file, or to the folder that is named:
//   npm install --prefix DIR kaitai-struct-compiler@0.11 js-yaml
//   NODE_PATH=DIR/node_modules node tests/kaitai/compile.js [FOLDER]
const fs = require("fs");
const path = require("path");
const compiler = require("kaitai-struct-compiler");
const yaml = require("js-yaml");

const folder = process.argv[2] ?? __dirname;
const source = path.join(__dirname, "..", "..", "spec", "kcap.ksy");
const spec = yaml.load(fs.readFileSync(source, "utf8"));
compiler
  .compile("python", spec, null, false)
  .then((files) => {
    for (const [name, text] of Object.entries(files)) {
      fs.writeFileSync(path.join(folder, name), text.replace(/\t/g, "    "));
    }
  })
  .catch((error) => {
    console.error(String(error.message ?? error));
    process.exit(1);
  });
