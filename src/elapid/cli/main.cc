// The command `elapid`: finds the command, runs it, and turns what goes wrong into one line and an exit code: 1 for a
// run that failed, 2 for wrong arguments.

#include "elapid/cli/command.h"
#include "elapid/cli/output.h"
#include "elapid/core/isa.h"
#include "elapid/core/trace.h"

#include <algorithm>
#include <array>
#include <csignal>
#include <exception>
#include <new>

namespace elapid::cli {
namespace {

struct Command {
  const char* name;
  const char* summary;
  Run (*prepare)(Flags& flags);
};

constexpr std::array<Command, 10> kCommands = {{
    {"generate", "Continue a prompt with a model, streaming the text", prepare_generate},
    {"chat", "Talk with a model, keeping only its state between turns", prepare_chat},
    {"forward", "Run tensors from a file through a model, for scripts and tests", prepare_forward},
    {"tokenize", "Text to token ids, or back", prepare_tokenize},
    {"score", "Negative log-likelihood of a text, at constant memory", prepare_score},
    {"eval", "Zero-shot tasks, as lm-evaluation-harness computes them", prepare_eval},
    {"inspect", "What a model folder holds", prepare_inspect},
    {"convert", "Write a checkpoint of any dialect as a Hugging Face folder", prepare_convert},
    {"quantize", "Write a copy of a checkpoint in 8 or 4 bits", prepare_quantize},
    {"bench", "Measure a model's speed", prepare_bench},
}};

std::string usage() {
  std::string text = "elapid " ELAPID_VERSION
                     ": an engine for state-space language models\n"
                     "Usage: elapid COMMAND [OPTIONS]\n\nCommands:\n";
  for (const Command& command : kCommands) {
    text += concat("  ", command.name, std::string(12 - std::string(command.name).size(), ' '), command.summary, "\n");
  }
  return text +
         "\n`elapid COMMAND --help` lists its options; `elapid --version` prints the version.\n"
         "ELAPID_FORCE_ISA=baseline|avx2|avx512|amx forces an instruction set; ELAPID_TRACE=1 reports the time spent "
         "in "
         "kernels.\n";
}

const Command& find_command(const std::string& name) {
  std::string names;
  for (const Command& command : kCommands) {
    if (name == command.name) return command;
    names += concat(names.empty() ? "" : ", ", command.name);
  }
  throw UsageError(concat("command: must be one of ", names, ", got ", name.empty() ? "nothing" : name));
}

void check_isa() {
  try {
    static_cast<void>(active_isa());
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
}

void run(const std::vector<std::string>& arguments) {
  const std::string first = arguments.empty() ? "" : arguments.front();
  if (first == "--help" || first == "-h") return print(usage());
  if (first == "--version") return print("elapid " ELAPID_VERSION "\n");
  const Command& command = find_command(first);
  Flags flags(command.name, command.summary);
  const Run body = command.prepare(flags);
  if (!flags.parse({arguments.begin() + 1, arguments.end()})) return print(flags.help());
  check_isa();
  body();
  if (tracing()) note(trace_report());
}

int report(const char* message, int code) {
  note("elapid: " + one_line(message));
  return code;
}

int guarded(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe is an error of the write
  try {
    run({argv + std::min(argc, 1), argv + argc});
    return 0;
  } catch (const ClosedPipe&) {
    return 1;
  } catch (const UsageError& error) {
    return report(error.what(), 2);
  } catch (const std::bad_alloc&) {
    return report("memory: must suffice for this run, got an allocation that failed", 1);
  } catch (const std::exception& error) {
    return report(error.what(), 1);
  }
}

}  // namespace
}  // namespace elapid::cli

int main(int argc, char** argv) { return elapid::cli::guarded(argc, argv); }
