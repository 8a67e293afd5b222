// Scores one image with an exported archive, without Python.
//
//   score ARCHIVE.pt IMAGE.ppm [LIBRARY.so]
//
// ARCHIVE.pt comes from `stadfast export`. LIBRARY.so holds stadfast's operators: `stadfast info` says where it lies;
// an archive exported with --portable needs none. IMAGE.ppm is a binary PPM (P6, 8 bits), which needs no image library.
#include <dlfcn.h>
#include <torch/script.h>

#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>

// (1, 3, H, W) float32 in [0, 1]
torch::Tensor read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  int64_t width = 0, height = 0, largest = 0;
  file >> magic >> width >> height >> largest;
  file.get();
  if (!file || magic != "P6" || largest != 255 || width < 1 || height < 1 || width > 65536 || height > 65536)
    throw std::runtime_error(path + ": expected a binary PPM of 8 bits");
  torch::Tensor pixels = torch::empty({1, height, width, 3}, torch::kUInt8);
  if (!file.read(static_cast<char*>(pixels.data_ptr()), pixels.numel()))
    throw std::runtime_error(path + ": is truncated");
  return pixels.permute({0, 3, 1, 2}).to(torch::kFloat32).div_(255);
}

int main(int argc, char** argv) try {
  if (argc < 3) throw std::runtime_error("usage: score ARCHIVE.pt IMAGE.ppm [LIBRARY.so]");
  if (argc > 3 && !dlopen(argv[3], RTLD_NOW | RTLD_GLOBAL)) throw std::runtime_error(dlerror());

  torch::jit::Module model = torch::jit::load(argv[1]);
  model.eval();
  c10::InferenceMode no_gradients;
  const auto outputs = model.forward({read_ppm(argv[2])}).toTuple()->elements();
  const torch::Tensor score = outputs[0].toTensor(), label = outputs[1].toTensor(), map = outputs[2].toTensor();

  const torch::Tensor peak = map.flatten().argmax();
  const int64_t width = map.size(3), where = peak.item<int64_t>();
  std::cout.precision(9);
  std::cout << "score " << score.item<float>() << "\n"
            << "verdict " << (label.item<bool>() ? "defective" : "good") << "\n"
            << "peak row " << where / width << " column " << where % width << " of " << map.size(2) << " x " << width
            << "\n";
} catch (const c10::Error& error) {
  std::cerr << "score: " << error.what_without_backtrace() << "\n";
  return 1;
} catch (const std::exception& error) {
  std::cerr << "score: " << error.what() << "\n";
  return 1;
}
