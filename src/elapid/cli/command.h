#pragma once

// The commands, one file each: register flags, return what runs once they are parsed.

#include "elapid/cli/flags.h"

#include <functional>

namespace elapid::cli {

using Run = std::function<void()>;

Run prepare_bench(Flags& flags);
Run prepare_chat(Flags& flags);
Run prepare_convert(Flags& flags);
Run prepare_eval(Flags& flags);
Run prepare_forward(Flags& flags);
Run prepare_generate(Flags& flags);
Run prepare_inspect(Flags& flags);
Run prepare_quantize(Flags& flags);
Run prepare_score(Flags& flags);
Run prepare_tokenize(Flags& flags);

}  // namespace elapid::cli
