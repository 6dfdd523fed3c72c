// Compiles lib/ into dist/: ES modules with declarations by the TypeScript compiler, one CommonJS bundle for require() by esbuild.
import { execFileSync } from 'node:child_process'
import { chmodSync, copyFileSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'

const root = fileURLToPath(new URL('..', import.meta.url))
const dist = path.join(root, 'dist')

/** Public entries: the file in lib/ that exports it, and the name of its CommonJS bundle. */
const entries = [{ module: 'index', bundle: 'index' }, { module: 'ops/index', bundle: 'ops' }]

/** Names that an entry exports, parted into types and values: the CommonJS declarations repeat them one by one. */
function exportedNames(module) {
  const source = readFileSync(path.join(root, `lib/${module}.ts`), 'utf8')
  const types = [], values = []
  for (const [, typeOnly, list] of source.matchAll(/^export (type )?\{([^}]*)\}/gm)) {
    for (const name of list.split(',').map((n) => n.trim()).filter(Boolean)) {
      if (typeOnly || name.startsWith('type ')) types.push(name.replace(/^type /, ''))
      else values.push(name)
    }
  }
  return { types, values }
}

/** A `require`d package needs declarations of its own kind; these forward to the ES module's. */
function commonJsDeclarations(module) {
  const { types, values } = exportedNames(module)
  const from = `import('./${module}.js', { with: { 'resolution-mode': 'import' } })`
  const lines = types.map((name) => `export type ${name} = ${from}.${name}`)
  for (const name of values) {
    lines.push(`export declare const ${name}: typeof ${from}.${name}`)
    if (/^[A-Z]/.test(name)) lines.push(`export type ${name} = ${from}.${name}`)
  }
  return `${lines.join('\n')}\n`
}

rmSync(dist, { recursive: true, force: true })
execFileSync(process.execPath, [path.join(root, 'node_modules/typescript/bin/tsc'), '-p', path.join(root, 'tsconfig.json')], { stdio: 'inherit' })
copyFileSync(path.join(root, 'lib/native.d.ts'), path.join(dist, 'native.d.ts'))
for (const { module, bundle } of entries) {
  await build({
    entryPoints: [path.join(dist, `${module}.js`)],
    outfile: path.join(dist, `${bundle}.cjs`),
    bundle: true,
    format: 'cjs',
    platform: 'node',
    target: 'node20',
    external: ['@huggingface/jinja'],
    define: { 'import.meta.url': 'bundleUrl' },
    banner: { js: `const bundleUrl = require('node:url').pathToFileURL(__filename).href` },
    logLevel: 'warning',
  })
  writeFileSync(path.join(dist, `${bundle}.d.cts`), commonJsDeclarations(module))
}
chmodSync(path.join(dist, 'cli/main.js'), 0o755)
