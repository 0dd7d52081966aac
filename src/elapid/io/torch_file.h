#pragma once

// pytorch_model.bin: what torch.save writes, in the zip format and in the one before torch 1.6 (a sequence of pickles,
// then the storages). The pickle is read as data and runs nothing (see pickle.h): names other than those of tensors,
// storages and dtypes are refused. Everything is checked before any tensor is handed out: the archive, every storage
// against the file, every tensor against its storage.

#include "elapid/io/stored_tensor.h"

#include <filesystem>
#include <string>

namespace elapid {

// The tensors of a state dict, or of the one that the file holds under state_dict, model, model_state_dict or module.
// Contiguous tensors are views of the mapped file, those that share a storage too, together at most 16 times as large
// as the file; strided ones are copied, and all copies together are no larger than the file. Other entries are left out
// when they are plain data: numbers, texts, and tuples, lists and dicts of them.
StoredTensors read_torch_file(const std::filesystem::path& path);

// From memory, for tests and fuzzing; `what` names it in errors, the bytes must outlive the tensors.
StoredTensors parse_torch_file(Bytes bytes, const std::string& what);

}  // namespace elapid
