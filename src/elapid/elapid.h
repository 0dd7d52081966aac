#pragma once

// The public API: load a model and its tokenizer, generate, score, keep states.
//
//   elapid::ThreadPool threads;
//   const auto model = elapid::load_model("models/storyteller", threads);
//   const auto tokenizer = elapid::Tokenizer::load("models/storyteller");
//   elapid::Engine engine(*model, threads);
//   const auto result = elapid::generate(engine, tokenizer.encode("Once upon a time"), {});
//   std::cout << tokenizer.decode(result.sequences[0].ids);

#include "elapid/core/error.h"
#include "elapid/core/isa.h"
#include "elapid/core/thread_pool.h"
#include "elapid/infer/beam.h"
#include "elapid/infer/compare.h"
#include "elapid/infer/engine.h"
#include "elapid/infer/generate.h"
#include "elapid/infer/likelihood.h"
#include "elapid/infer/prefix_cache.h"
#include "elapid/infer/sampler.h"
#include "elapid/infer/score.h"
#include "elapid/model/convert.h"
#include "elapid/model/load.h"
#include "elapid/model/model.h"
#include "elapid/model/quantize.h"
#include "elapid/state/pool.h"
#include "elapid/state/state.h"
#include "elapid/text/stream_decoder.h"
#include "elapid/text/template.h"
#include "elapid/text/tokenizer.h"
