// Where node-gyp finds Node's headers. In order: a folder that the user named, the running Node's own, and last one made of the
// node-api-headers package: the addon uses Node-API alone, so nothing ever has to be downloaded.
import { cpSync, existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'

const isNodeDir = (folder) => existsSync(path.join(folder, 'include/node/node_api.h')) && existsSync(path.join(folder, 'include/node/common.gypi'))

/** The value for node-gyp's --nodedir, or undefined when node-gyp has to download (Windows: the import library is needed). */
export function findNodeDir(root) {
  const named = process.env.npm_config_nodedir || process.env.NODEDIR
  if (named && isNodeDir(named)) return named
  const own = path.resolve(path.dirname(process.execPath), '..')
  if (isNodeDir(own)) return own
  return process.platform === 'win32' ? undefined : makeNodeDir(root)
}

/** What node-gyp wants of Node's common.gypi, for an addon that brings its own flags. */
const commonGypi = {
  variables: { 'visibility%': 'hidden', 'library%': 'static_library' },
  target_defaults: {
    default_configuration: 'Release',
    configurations: { Release: {}, Debug: {} },
    conditions: [
      ['OS=="linux"', { cflags: ['-pthread'], ldflags: ['-pthread', '-rdynamic'] }],
      ['OS=="mac"', { xcode_settings: { CLANG_CXX_LIBRARY: 'libc++', ALWAYS_SEARCH_USER_PATHS: 'NO' } }],
    ],
  },
}

function makeNodeDir(root) {
  const require = createRequire(path.join(root, 'package.json'))
  const folder = path.join(root, 'build', 'node-headers')
  const include = path.join(folder, 'include', 'node')
  mkdirSync(include, { recursive: true })
  cpSync(require('node-api-headers').include_dir, include, { recursive: true })
  writeFileSync(path.join(include, 'common.gypi'), `${JSON.stringify(commonGypi, null, 2)}\n`)
  const config = JSON.stringify(process.config, (_, value) => (typeof value === 'boolean' ? String(value) : value), 2)
  writeFileSync(path.join(include, 'config.gypi'), `${config.replace(/#/g, '')}\n`)
  return folder
}
