// A SentencePiece model: texts encode in pieces as they do at once, and decode to valid UTF-8.

#include "elapid/text/stream_decoder.h"
#include "elapid/text/tokenizer.h"
#include "fuzz/property.h"

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace elapid {
namespace {

void run(std::string_view model) {
  const Tokenizer tokenizer = Tokenizer::parse_sentencepiece(model, "input");
  for (const std::string_view text :
       {"", " the  house\n", "a\xE2\x96\x81[INST]\xC3\xA9\xF0\x9F\x98\x80[DOC_1]b<unk>"}) {
    for (const bool control : {false, true}) {
      const EncodeOptions options{.control_tokens = control};
      std::vector<TokenId> ids;
      const bool encodes = succeeds([&] { ids = tokenizer.encode(text, options); });
      std::vector<TokenId> streamed;
      const bool streams = succeeds([&] {
        EncodeStream stream(tokenizer, options);
        for (size_t i = 0; i < text.size(); ++i) stream.push(text.substr(i, 1), streamed);
        stream.finish(streamed);
      });
      expect(streams == encodes && (!encodes || streamed == ids), "encoding in pieces gives the same ids");
      for (const TokenId id : ids) expect(id >= 0 && id < tokenizer.vocab_size(), "ids are within the vocabulary");
      expect(is_utf8(tokenizer.decode(ids, false)), "decoded text is valid UTF-8");
    }
  }
  StreamDecoder decoder(tokenizer, {"stop"}, true);
  const auto size = static_cast<TokenId>(tokenizer.vocab_size());
  for (TokenId id = 0; id < size && id < 300; ++id) expect(is_utf8(decoder.push(id)), "streamed text is valid UTF-8");
  expect(is_utf8(decoder.finish()), "the streamed rest is valid UTF-8");
}

}  // namespace
}  // namespace elapid

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  elapid::succeeds([&] { elapid::run({reinterpret_cast<const char*>(data), size}); });
  return 0;
}
