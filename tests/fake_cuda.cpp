// CUDA that does nothing, for a torch without CUDA: a device guard, hooks, and the answer that CUDA is the accelerator.
// With it, tensors that hold no data (torch's FakeTensorMode) can be on a "cuda" device.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
const c10::Device kFirst(c10::DeviceType::CUDA, 0);

struct Guard : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device getDevice() const override { return kFirst; }
  c10::Device exchangeDevice(c10::Device) const override { return kFirst; }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, kFirst); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
};
Guard guard;
c10::impl::DeviceGuardImplRegistrar registrar(c10::DeviceType::CUDA, &guard);
}  // namespace

namespace at {
struct FakeGenerator : CPUGeneratorImpl {
  FakeGenerator() { device_ = kFirst; }
};

struct CUDAHooks : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  Generator getNewGenerator(DeviceIndex) const override { return make_generator<FakeGenerator>(); }
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex current_device() const override { return 0; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
};
REGISTER_CUDA_HOOKS(CUDAHooks);

// torch without CUDA is compiled to answer "none"; this one is found first.
std::optional<c10::DeviceType> accelerator::getAccelerator(bool) { return c10::DeviceType::CUDA; }
}  // namespace at
