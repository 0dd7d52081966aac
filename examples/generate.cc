// Streams a continuation of a prompt: generate MODEL_DIR [PROMPT]

#include "elapid/elapid.h"

#include <exception>
#include <iostream>
#include <string>

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    std::cerr << "usage: generate MODEL_DIR [PROMPT]\n";
    return 2;
  }
  const std::string folder = argv[1];
  const std::string prompt = argc > 2 ? argv[2] : "Once upon a time";
  try {
    elapid::ThreadPool threads;
    const auto model = elapid::load_model(folder, threads);
    const auto tokenizer = elapid::Tokenizer::load(folder);
    elapid::Engine engine(*model, threads);

    // Tokens arrive one by one; the decoder turns them into pieces of valid UTF-8 that are ready to be shown.
    elapid::StreamDecoder decoder(tokenizer);
    std::cout << prompt << std::flush;
    elapid::GenerateOptions options;
    options.sampling.seed = 7;
    options.max_new_tokens = 100;
    elapid::generate(engine, tokenizer.encode(prompt), options, [&](int64_t /*sequence*/, elapid::TokenId id) {
      std::cout << decoder.push(id) << std::flush;
      return true;
    });
    std::cout << decoder.finish() << '\n';
  } catch (const std::exception& error) {
    std::cerr << "generate: " << error.what() << '\n';
    return 1;
  }
}
