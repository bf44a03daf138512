// The native part of the simulated GPU: device guard, hooks and DDP's timer for device type CUDA.
//
// A CPU build of torch has none of the three. Autograd and DDP use them for every tensor whose device is cuda:N. Work is done
// as soon as it is launched, so streams and events have nothing to do.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/distributed/c10d/reducer_timer.hpp>

#include <cstdlib>

namespace {

using namespace c10;

int number_from_environment(const char* name, int otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::atoi(value);
}

thread_local DeviceIndex current_device = 0;  // as in CUDA, a new thread begins on device 0

DeviceIndex num_devices() {
  static const int count = number_from_environment("SIMULATED_GPUS", 2);
  return static_cast<DeviceIndex>(count);
}

Stream stream_of(DeviceIndex index) { return Stream(Stream::DEFAULT, Device(DeviceType::CUDA, index)); }

struct Guard final : impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device getDevice() const override { return Device(DeviceType::CUDA, current_device); }
  Device exchangeDevice(Device device) const override {
    const Device before = getDevice();
    current_device = device.index();
    return before;
  }
  void setDevice(Device device) const override { current_device = device.index(); }
  void uncheckedSetDevice(Device device) const noexcept override { current_device = device.index(); }
  DeviceIndex deviceCount() const noexcept override { return num_devices(); }
  Stream getStream(Device device) const noexcept override { return stream_of(device.index()); }
  Stream getNewStream(Device device, int) const override { return stream_of(device.index()); }
  Stream getDefaultStream(Device device) const override { return stream_of(device.index()); }
  Stream exchangeStream(Stream stream) const noexcept override { return stream; }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

}  // namespace

namespace at {

struct SimulatedHooks final : CUDAHooksInterface {
  explicit SimulatedHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return num_devices(); }
  DeviceIndex current_device() const override { return ::current_device; }
  DeviceIndex getCurrentDevice() const override { return ::current_device; }
  void setCurrentDevice(DeviceIndex index) const override { ::current_device = index; }
  DeviceIndex exchangeDevice(DeviceIndex index) const override {
    const DeviceIndex before = ::current_device;
    ::current_device = index;
    return before;
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex index) const override { return exchangeDevice(index); }
};
using CUDAHooks = SimulatedHooks;
REGISTER_CUDA_HOOKS(CUDAHooks);

}  // namespace at

namespace c10d {

class SimulatedTimer final : public Timer {
 public:
  explicit SimulatedTimer(c10::Device) {}
  std::optional<int64_t> measureDifference(Event start, Event end) override {
    const int64_t from = getTimeRef(start), to = getTimeRef(end);
    if (from < 0 || to < from) return std::nullopt;
    return to - from;
  }
};
C10_REGISTER_TYPED_CLASS(TimerRegistry, c10::kCUDA, SimulatedTimer);

}  // namespace c10d

extern "C" void simulated_gpu_set_device(int index) { current_device = static_cast<c10::DeviceIndex>(index); }
extern "C" int simulated_gpu_current_device() { return current_device; }
extern "C" int simulated_gpu_num_devices() { return num_devices(); }
