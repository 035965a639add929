// The command line tool: what it accepts, and how errors become one sentence and an exit code.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <new>
#include <string>

#include "cli/commands.h"
#include "cli/escape.h"

namespace flashmla::cli {
namespace {

void add_execution_flags(CLI::App& command, ExecutionOptions& on, const std::string& backend_meaning) {
  command.add_option("--backend", on.backend, backend_meaning);
  command.add_option("--device", on.device, "cpu, cuda or cuda:N; the default is where the backend runs");
  command.add_option("--threads", on.threads, "CPU threads; 0 takes OpenMP's default");
}

void add_shape_flags(CLI::App& command, ShapeFlags& given) {
  for (const FlagDescription& flag : shape_flags()) {
    const std::string name = "--" + flag.name;
    if (flag.kind == FlagKind::kSwitch) {
      command.add_flag_callback(name, [&given, flag] { given[flag.name] = "true"; }, flag.meaning);
    } else {
      command.add_option_function<std::string>(
          name, [&given, flag](const std::string& value) { given[flag.name] = value; }, flag.meaning);
    }
  }
}

// CLI11 takes -1 as a very large unsigned number.
std::string not_negative(const std::string& text) { return text.starts_with('-') ? "must be 0 or more" : ""; }

/// Every option of every subcommand, filled by the parser.
struct Options {
  InfoOptions info;
  RunOptions run;
  CheckOptions check;
  MakeOptions make;
  BenchOptions bench;
};

void declare(CLI::App& app, Options& options) {
  app.set_version_flag("--version", "flashmla " FLASHMLA_VERSION);
  app.require_subcommand(1);

  CLI::App& info = *app.add_subcommand("info", "The machine, the backends, and which kernels are available");
  info.add_flag("--json", options.info.json, "Print JSON");

  CLI::App& run = *app.add_subcommand("run", "Run the operations of case files and write their outputs");
  run.add_option("CASE", options.run.cases, "safetensors files")->required();
  run.add_option("-o,--out", options.run.out, "File of the outputs; a folder if there are several cases");
  add_execution_flags(run, options.run.on, "Backend; the default is the first that supports the case");

  CLI::App& check =
      *app.add_subcommand("check", "Run case files and compare with what they expect and with the reference");
  check.add_option("CASE", options.check.cases, "safetensors files")->required();
  add_execution_flags(check, options.check.on, "Backend, or all of them");

  CLI::App& make =
      *app.add_subcommand("make", "Write a random case, with NaN in the memory it must not read");
  make.add_option("OP", options.make.operation, "Operation")->required();
  make.add_option("-o,--out", options.make.out, "The file to write")->required();
  make.add_option("--seed", options.make.seed, "The same seed makes the same case")->check(not_negative);
  make.add_flag("--no-expected", options.make.no_expected, "Leave out the outputs of the reference");
  add_shape_flags(make, options.make.shape);
  make.footer(shape_help(Purpose::kMake));

  CLI::App& bench = *app.add_subcommand(
      "bench", "Measure operations; lists as in --seqlen 1024,4096 make one case for each combination");
  bench.add_option("OP", options.bench.operation, "Operation");
  bench.add_option("--cases", options.bench.cases, "Instead of OP and its flags: a JSON file of cases");
  bench.add_option("--json", options.bench.json, "Also write the results to this file");
  bench.add_option("--seconds", options.bench.seconds, "Measuring time of each case, default 1");
  bench.add_option("--seed", options.bench.seed, "Seed of the inputs")->check(not_negative);
  add_execution_flags(bench, options.bench.on, "Backend; the default is the first that supports the case");
  add_shape_flags(bench, options.bench.shape);
  bench.footer(shape_help(Purpose::kBench));
}

int dispatch(const CLI::App& app, const Options& options) {
  if (app.got_subcommand("info")) return info(options.info);
  if (app.got_subcommand("run")) return run(options.run);
  if (app.got_subcommand("check")) return check(options.check);
  if (app.got_subcommand("make")) return make(options.make);
  return bench(options.bench);
}

int fail(const std::string& message) {
  std::fprintf(stderr, "flashmla: %s\n", escaped(message).c_str());
  return kWrongUse;
}

int run_command_line(int argc, char** argv) {
  CLI::App app("Attention kernels for multi-head latent attention");
  Options options;
  declare(app, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help and --version
    if (app.get_subcommands().empty()) {
      return fail(fmt::format("the command must be info, run, check, make or bench, got \"{}\"",
                              argc > 1 ? argv[1] : ""));
    }
    return fail(fmt::format("{}; --help says more", error.what()));
  }
  const int code = dispatch(app, options);
  return std::fflush(stdout) == 0 ? code : fail("cannot write to standard output");
}

}  // namespace
}  // namespace flashmla::cli

int main(int argc, char** argv) {
  try {
    return flashmla::cli::run_command_line(argc, argv);
  } catch (const std::bad_alloc&) {
    return flashmla::cli::fail("not enough memory");
  } catch (const std::exception& error) {
    return flashmla::cli::fail(error.what());
  }
}
