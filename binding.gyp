# The addon for node-gyp, and on request the C++ tests and fuzzers. The sources are native/sources.json, which CMakeLists.txt reads too.
#   -Dnative_tests=1   also lapidary_tests and lapidary_fuzz
#   -Dcuda_tests=1     also the CUDA kernels as plain C++ over the emulator, and lapidary_cuda_tests, which runs them
#   -Dgpu_bench=1      also lapidary_gpu_bench, and lapidary_cuda_emulated.node, the emulated double of the CUDA library
#   -Doutliers=1       also lapidary_outliers, which trains the checkpoints that bench/w8a8 measures
#   -Dgpu_check=1      those and lapidary_gpu_tests: what bench/gpu/check.sh runs over a CUDA library
#   -Dwith_addon=0     no addon: then gyp alone builds the rest, with no Node headers
#   -Dsanitize=LIST    address,undefined or thread; keeps assertions
#   -Devery_check=1    with sanitize: every instruction set, and also the checks of UBSan that double the time of compiling
#   -Dwerror=1         warnings are errors
{
  "variables": {
    "native_tests%": 0,
    "cuda_tests%": 0,
    "gpu_bench%": 0,
    "gpu_check%": 0,
    "outliers%": 0,
    "with_addon%": 1,
    "sanitize%": "",
    "every_check%": 0,
    "werror%": 0,
    "read_sources": "node -p \"require('./native/sources.json')",
    "version": "<!(node -p \"require('./package.json').version\")",
  },
  "target_defaults": {
    # target_conditions do not see the file's own variables.
    "variables": {"sanitize%": "<(sanitize)", "every_check%": "<(every_check)"},
    "default_configuration": "Release",
    "configurations": {"Release": {}, "Debug": {}},
    "include_dirs": ["native", "."],
    "cflags!": ["-fno-exceptions", "-fno-omit-frame-pointer"],
    "cflags_cc!": ["-fno-exceptions", "-fno-rtti", "-std=gnu++17", "-std=gnu++20", "-std=gnu++1y", "-std=gnu++14"],
    # Contraction off: every fused multiply-add is one we wrote, so all instruction sets agree (docs/numerics.md).
    # gcc 12 sees overlap (-Wrestrict) in std::string's own code; compilers without that warning are told not to mind its name. Members that
    # a designated initializer leaves out have the values that the struct gives them, which gcc warns of in C++ alone.
    "cflags_cc": ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-restrict", "-Wno-unknown-warning-option",
                  "-Wno-missing-field-initializers", "-ffp-contract=off", "-fno-math-errno"],
    "conditions": [
      ["werror==1", {"cflags_cc": ["-Werror"]}],
      ["sanitize==''", {"cflags_cc": ["-O3"], "defines": ["NDEBUG"]}, {
        "cflags_cc": ["-O1", "-g1", "-fsanitize=<(sanitize)", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"],
        "ldflags": ["-fsanitize=<(sanitize)"],
      }],
      # Kernels are one source over vector types: one instruction set has its loops and ends, and threads meet in the same places whatever the vectors.
      ["sanitize!='' and every_check==0", {"defines": ["LAPIDARY_AVX2_ONLY"]}],
    ],
    "target_conditions": [
      # Checks before every access take the compiler minutes, of kernels most of all: they load vectors unaligned on purpose. ASan sees a null pointer too.
      ["'address' in sanitize and (every_check==0 or _target_name in 'lapidary_emulator lapidary_avx2 lapidary_avx512 lapidary_avx512vnni lapidary_avxvnni lapidary_avx512bf16 lapidary_amx'.split())", {
        "cflags_cc": ["-fno-sanitize=null,alignment,object-size,pointer-overflow,vptr"],
      }],
      # Tests are compiled more often than they run. ASan watches what they call; TSan must see both sides of every atomic. The kernels without
      # vectors are the loops of the others, which sanitizers watch, at many times their cost.
      ["_target_name in 'lapidary_tests lapidary_fuzz lapidary_cuda_tests lapidary_gpu_tests'.split()", {"cflags_cc!": ["-O3"], "cflags_cc": ["-O1"]}],
      ["'address' in sanitize and _target_name in 'lapidary_tests lapidary_fuzz lapidary_cuda_tests'.split()", {"cflags_cc!": ["-fsanitize=<(sanitize)"]}],
      ["sanitize!='' and _target_name=='lapidary_scalar'", {"cflags_cc!": ["-fsanitize=<(sanitize)"]}],
      # Under TSan they are linked, and never chosen where there is AVX2.
      ["sanitize=='thread' and target_arch=='x64' and _target_name=='lapidary_scalar'", {"cflags_cc!": ["-O1", "-O2"], "cflags_cc": ["-O0"]}],
    ],
    "xcode_settings": {
      "CLANG_CXX_LANGUAGE_STANDARD": "c++20",
      "CLANG_CXX_LIBRARY": "libc++",
      "GCC_ENABLE_CPP_EXCEPTIONS": "YES",
      "GCC_ENABLE_CPP_RTTI": "YES",
      "GCC_OPTIMIZATION_LEVEL": "3",
      "GCC_SYMBOLS_PRIVATE_EXTERN": "YES",
      "MACOSX_DEPLOYMENT_TARGET": "13.3",
      "OTHER_CPLUSPLUSFLAGS": ["-ffp-contract=off", "-fno-math-errno"],
    },
    "msvs_settings": {
      "VCCLCompilerTool": {"ExceptionHandling": 1, "RuntimeTypeInfo": "true", "AdditionalOptions": ["/std:c++20", "/fp:precise", "/utf-8"]},
    },
  },
  "targets": [
    {
      "target_name": "lapidary_core",
      "type": "static_library",
      "sources": ["<!@(<(read_sources).core.join(' ')\")"],
      # One library per instruction set; what depends on the core is linked with them too.
      "dependencies": ["lapidary_scalar"],
      "conditions": [
        ["target_arch=='x64'", {"dependencies": ["lapidary_avx2"]}],
        ["target_arch=='x64' and (sanitize=='' or every_check==1)", {"dependencies": ["lapidary_avx512", "lapidary_avx512vnni", "lapidary_avxvnni",
                                                                                   "lapidary_avx512bf16", "lapidary_amx"]}],
        ["target_arch=='arm64' and OS!='win'", {"dependencies": ["lapidary_neon", "lapidary_neondot", "lapidary_neoni8mm"]}],
      ],
    },
    {
      "target_name": "lapidary_scalar",
      "type": "static_library",
      "sources": ["<!@(<(read_sources).scalar.join(' ')\")"],
      # Vectors as loops: at -O3 they take the compiler five times as long and run no faster.
      "cflags_cc!": ["-O3"],
      "cflags_cc": ["-O2"],
      "xcode_settings": {"GCC_OPTIMIZATION_LEVEL": "2"},
    },
  ],
  "conditions": [
    ["target_arch=='x64'", {
      "targets": [
        {
          "target_name": "lapidary_avx2",
          "type": "static_library",
          "sources": ["<!@(<(read_sources).avx2.join(' ')\")"],
          "cflags_cc": ["-mavx2", "-mfma", "-mf16c"],
          "xcode_settings": {"OTHER_CPLUSPLUSFLAGS": ["-mavx2", "-mfma", "-mf16c"]},
          "msvs_settings": {"VCCLCompilerTool": {"AdditionalOptions": ["/arch:AVX2"]}},
        },
        {
          "target_name": "lapidary_avx512",
          "type": "static_library",
          "sources": ["<!@(<(read_sources).avx512.join(' ')\")"],
          "cflags_cc": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"],
          "xcode_settings": {"OTHER_CPLUSPLUSFLAGS": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"]},
          "msvs_settings": {"VCCLCompilerTool": {"AdditionalOptions": ["/arch:AVX512"]}},
        },
        {
          "target_name": "lapidary_avxvnni",
          "type": "static_library",
          "sources": ["<!@(<(read_sources).avxvnni.join(' ')\")"],
          "cflags_cc": ["-mavx2", "-mfma", "-mf16c", "-mavxvnni"],
          "xcode_settings": {"OTHER_CPLUSPLUSFLAGS": ["-mavx2", "-mfma", "-mf16c", "-mavxvnni"]},
          "msvs_settings": {"VCCLCompilerTool": {"AdditionalOptions": ["/arch:AVX2"]}},
        },
        {
          "target_name": "lapidary_avx512vnni",
          "type": "static_library",
          "sources": ["<!@(<(read_sources).avx512vnni.join(' ')\")"],
          "cflags_cc": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma", "-mf16c"],
          "xcode_settings": {"OTHER_CPLUSPLUSFLAGS": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma", "-mf16c"]},
          "msvs_settings": {"VCCLCompilerTool": {"AdditionalOptions": ["/arch:AVX512"]}},
        },
        {
          "target_name": "lapidary_avx512bf16",
          "type": "static_library",
          "sources": ["<!@(<(read_sources).avx512bf16.join(' ')\")"],
          "cflags_cc": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma", "-mf16c"],
          "xcode_settings": {"OTHER_CPLUSPLUSFLAGS": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma", "-mf16c"]},
          "msvs_settings": {"VCCLCompilerTool": {"AdditionalOptions": ["/arch:AVX512"]}},
        },
        {
          "target_name": "lapidary_amx",
          "type": "static_library",
          "sources": ["<!@(<(read_sources).amx.join(' ')\")"],
          "cflags_cc": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mamx-tile", "-mamx-int8", "-mamx-bf16", "-mfma", "-mf16c"],
          "xcode_settings": {"OTHER_CPLUSPLUSFLAGS": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mamx-tile", "-mamx-int8", "-mamx-bf16", "-mfma", "-mf16c"]},
          "msvs_settings": {"VCCLCompilerTool": {"AdditionalOptions": ["/arch:AVX512"]}},
        },
      ],
    }],
    ["target_arch=='arm64' and OS!='win'", {
      "targets": [
        {
          "target_name": "lapidary_neon",
          "type": "static_library",
          "sources": ["<!@(<(read_sources).neon.join(' ')\")"],
        },
        {
          "target_name": "lapidary_neondot",
          "type": "static_library",
          "sources": ["<!@(<(read_sources).neondot.join(' ')\")"],
          "cflags_cc": ["-march=armv8.2-a+dotprod"],
          "xcode_settings": {"OTHER_CPLUSPLUSFLAGS": ["-march=armv8.2-a+dotprod"]},
        },
        {
          "target_name": "lapidary_neoni8mm",
          "type": "static_library",
          "sources": ["<!@(<(read_sources).neoni8mm.join(' ')\")"],
          "cflags_cc": ["-march=armv8.2-a+dotprod+i8mm+bf16"],
          "xcode_settings": {"OTHER_CPLUSPLUSFLAGS": ["-march=armv8.2-a+dotprod+i8mm+bf16"]},
        },
      ],
    }],
    ["with_addon==1", {
      "targets": [{
        "target_name": "lapidary",
        "sources": ["<!@(<(read_sources).addon.join(' ')\")"],
        "dependencies": ["lapidary_core"],
        "include_dirs": ["<!(node -p \"require('node-addon-api').include_dir\")"],
        "defines": ["NAPI_VERSION=8", "NODE_ADDON_API_CPP_EXCEPTIONS", "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS", "LAPIDARY_VERSION=\"<(version)\""],
        "conditions": [
          ["OS=='linux'", {
            # gc-sections: what nobody calls may not ask for a newer system. nodelete: a worker thread that ends must not unload code that another thread may still be in.
            "ldflags": ["-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL", "-Wl,--gc-sections", "-Wl,-z,now", "-Wl,-z,nodelete"],
            "libraries": ["-ldl", "-lpthread"],
          }],
        ],
      }],
    }],
    ["native_tests==1", {
      "targets": [
        {
          "target_name": "lapidary_tests",
          "type": "executable",
          "conditions": [
            # Under TSan only what runs threads against each other.
            ["sanitize=='thread'", {"sources": ["<!@(<(read_sources).tests.filter((f) => /native.(main|base|runtime)/.test(f)).join(' ')\")"]},
                                   {"sources": ["<!@(<(read_sources).tests.join(' ')\")"]}],
          ],
          "dependencies": ["lapidary_core"],
          "include_dirs": ["test/native"],
          "defines": ["LAPIDARY_SOURCE_DIR=\"<(module_root_dir)\""],
          "libraries": ["-ldl", "-lpthread"],
        },
        {
          "target_name": "lapidary_fuzz",
          "type": "executable",
          "sources": ["<!@(<(read_sources).fuzz.join(' ')\")"],
          "dependencies": ["lapidary_core"],
          "include_dirs": ["test/native"],
          "defines": ["LAPIDARY_SOURCE_DIR=\"<(module_root_dir)\""],
          "libraries": ["-ldl", "-lpthread"],
        },
      ],
    }],
    ["cuda_tests==1 or gpu_bench==1 or gpu_check==1", {
      "targets": [{
        "target_name": "lapidary_emulator",
        "type": "static_library",
        # The launchers (.cu) come in by way of generated files: gyp compiles by the ending of a name.
        "sources": ["<!@(<(read_sources).emulator.join(' ')\")", "<!@(node scripts/emulated-sources.mjs)"],
        "include_dirs": ["test"],
        "defines": ["LAPIDARY_EMULATED"],
        "cflags_cc!": ["-O3"],
        "conditions": [["sanitize==''", {"cflags_cc": ["-O2"]}]],
      }],
    }],
    ["cuda_tests==1", {
      "targets": [{
        "target_name": "lapidary_cuda_tests",
        "type": "executable",
        "sources": ["test/native/main.cc", "<!@(<(read_sources).cuda_tests.join(' ')\")", "<!@(<(read_sources).emulator_tests.join(' ')\")"],
        "dependencies": ["lapidary_emulator", "lapidary_core"],
        "include_dirs": ["test", "test/native"],
        "defines": ["LAPIDARY_EMULATED", "LAPIDARY_SOURCE_DIR=\"<(module_root_dir)\""],
        "libraries": ["-ldl", "-lpthread"],
      }],
    }],
    ["gpu_bench==1 or gpu_check==1", {
      "targets": [
        {
          "target_name": "lapidary_cuda_emulated",
          "type": "loadable_module",
          "product_prefix": "",
          "product_extension": "node",  # which node-gyp gives every module
          "sources": ["build/emulated/api.cc"],
          "dependencies": ["lapidary_emulator", "lapidary_core"],
          "include_dirs": ["test"],
          "defines": ["LAPIDARY_EMULATED"],
          "ldflags": ["-static-libstdc++", "-static-libgcc", "-Wl,--gc-sections", "-Wl,-z,defs",
                      "-Wl,--version-script=<(module_root_dir)/cuda/launch/exports.map"],
          "libraries": ["-ldl", "-lpthread"],
        },
        {
          "target_name": "lapidary_gpu_bench",
          "type": "executable",
          "sources": ["<!@(<(read_sources).gpu_bench.join(' ')\")"],
          "dependencies": ["lapidary_core"],
          "ldflags": ["-static-libstdc++", "-static-libgcc", "-Wl,--gc-sections"],
          "libraries": ["-ldl", "-lpthread"],
        },
      ],
    }],
    ["outliers==1", {
      "targets": [{
        "target_name": "lapidary_outliers",
        "type": "executable",
        "sources": ["<!@(<(read_sources).tool_outliers.join(' ')\")"],
        "dependencies": ["lapidary_core"],
        "libraries": ["-ldl", "-lpthread"],
      }],
    }],
    ["gpu_check==1", {
      "targets": [{
        "target_name": "lapidary_gpu_tests",
        "type": "executable",
        "sources": ["test/native/main.cc", "<!@(<(read_sources).gpu_tests.join(' ')\")", "<!@(<(read_sources).cuda_tests.join(' ')\")"],
        "dependencies": ["lapidary_core"],
        "include_dirs": ["test", "test/native"],
        "defines": ["LAPIDARY_SOURCE_DIR=\"<(module_root_dir)\""],
        "ldflags": ["-static-libstdc++", "-static-libgcc", "-Wl,--gc-sections"],
        "libraries": ["-ldl", "-lpthread"],
      }],
    }],
  ],
}
