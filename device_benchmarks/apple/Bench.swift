// Written by `edgekd profile MODEL.mlpackage --on apple-package`. Times a Core ML model and prints one JSON document.
// Every raw sample is kept; `edgekd profile --import result.json` makes the figures.

import CoreML
import CoreVideo
import Foundation

/// What to measure and for how long. `computeUnits`: all, cpuOnly, cpuAndGPU or cpuAndNeuralEngine.
public struct Settings {
    public var computeUnits = "all"
    public var warmUpSeconds = 1.0
    public var warmUpCapSeconds = 30.0
    public var rounds = 24
    public var blockSeconds = 0.5
    public var blockRunsMax = 2000
    public init() {}
}

public enum BenchError: Error {
    case noResource(String)
    case unknownUnits(String)
    case unsupportedInput(String)
}

/// What a task gathers while its starter waits.
final class Rows: @unchecked Sendable {
    var values: [[String: Any]] = []
}

public struct Bench {
    let settings: Settings
    public init(_ settings: Settings = Settings()) { self.settings = settings }

    /// Compile, load, warm up, measure; the JSON text.
    public func run() throws -> String {
        let bundle = Bundle.module
        guard let package = bundle.url(forResource: "Model", withExtension: "mlpackage") else {
            throw BenchError.noResource("Model.mlpackage")
        }
        var document = try facts(bundle)
        let start = Self.wallNs()
        let compiled = try MLModel.compileModel(at: package)
        let compileNs = Self.wallNs() - start
        let model = try MLModel(contentsOf: compiled, configuration: configuration())
        let loadNs = Self.wallNs() - start
        let pixels = try floats(bundle, "input")
        let input = try Self.provider(model, pixels)

        let first = Self.wallNs()
        var output = try model.prediction(from: input)
        let firstNs = Self.wallNs() - first
        document["parity"] = try parity(bundle, output)

        let (warm, converged) = try warmUp(model, input)
        let recent = Self.median(Array(warm.suffix(10)))
        let runs = max(1, min(settings.blockRunsMax, Int(settings.blockSeconds * 1e9 / max(1, recent))))
        var blocks: [[String: Any]] = []
        var hottest = ProcessInfo.processInfo.thermalState.rawValue
        for block in 0..<(2 * settings.rounds) {
            var wall: [Int] = []
            var cpu: [Int] = []
            for _ in 0..<runs {
                let cpuStart = Self.cpuNs()
                let wallStart = Self.wallNs()
                output = try model.prediction(from: input)
                wall.append(Self.wallNs() - wallStart)
                cpu.append(Self.cpuNs() - cpuStart)
            }
            hottest = max(hottest, ProcessInfo.processInfo.thermalState.rawValue)
            blocks.append(["process": 0, "round": block / 2, "wall_ns": wall, "cpu_ns": cpu])
        }
        document["process"] = [
            "compile_ms": Double(compileNs) / 1e6, "load_ms": Double(loadNs) / 1e6,
            "first_inference_ms": Double(firstNs) / 1e6, "warm_up_ns": warm, "warm_up_converged": converged,
            "footprint_mib": (Self.footprintMib() as Any?) ?? NSNull(),
        ]
        document["blocks"] = blocks
        document["thermal_status_worst"] = hottest
        document["placement"] = placement(compiled)
        let data = try JSONSerialization.data(withJSONObject: document, options: [.sortedKeys])
        return String(decoding: data, as: UTF8.self)
    }

    func configuration() throws -> MLModelConfiguration {
        let units: [String: MLComputeUnits] = [
            "all": .all, "cpuOnly": .cpuOnly, "cpuAndGPU": .cpuAndGPU, "cpuAndNeuralEngine": .cpuAndNeuralEngine,
        ]
        guard let chosen = units[settings.computeUnits] else { throw BenchError.unknownUnits(settings.computeUnits) }
        let made = MLModelConfiguration()
        made.computeUnits = chosen
        return made
    }

    /// The manifest that edgekd wrote, and what this device is.
    func facts(_ bundle: Bundle) throws -> [String: Any] {
        guard let url = bundle.url(forResource: "manifest", withExtension: "json"),
            let manifest = try JSONSerialization.jsonObject(with: Data(contentsOf: url)) as? [String: Any]
        else { throw BenchError.noResource("manifest.json") }
        let process = ProcessInfo.processInfo
        var simulator = false
        #if targetEnvironment(simulator)
            simulator = true
        #endif
        return [
            "edgekd_apple_run": 1, "manifest": manifest, "compute_units": settings.computeUnits,
            "device": [
                "model": Self.sysctl("hw.machine"), "soc": Self.sysctl("machdep.cpu.brand_string"),
                "os_build": process.operatingSystemVersionString, "simulator": simulator,
                "active_cpus": process.activeProcessorCount, "memory_mib": Double(process.physicalMemory) / 1048576,
                "low_power_mode": process.isLowPowerModeEnabled, "thermal_status": process.thermalState.rawValue,
            ],
        ]
    }

    func warmUp(_ model: MLModel, _ input: MLFeatureProvider) throws -> ([Int], Bool) {
        var samples: [Int] = []
        let start = Self.wallNs()
        while true {
            let spent = Double(Self.wallNs() - start) / 1e9
            let stable = Self.isStable(samples)
            if spent >= settings.warmUpCapSeconds || (spent >= settings.warmUpSeconds && stable) {
                return (samples, stable)
            }
            let begin = Self.wallNs()
            _ = try model.prediction(from: input)
            samples.append(Self.wallNs() - begin)
        }
    }

    static func isStable(_ samples: [Int]) -> Bool {
        guard samples.count >= 20 else { return false }
        let last = median(Array(samples.suffix(10)))
        let before = median(Array(samples.suffix(20).prefix(10)))
        return abs(last - before) <= 0.02 * before
    }

    static func median(_ samples: [Int]) -> Double {
        let sorted = samples.sorted()
        guard !sorted.isEmpty else { return 1 }
        let middle = sorted.count / 2
        return sorted.count % 2 == 1 ? Double(sorted[middle]) : Double(sorted[middle - 1] + sorted[middle]) / 2
    }

    func floats(_ bundle: Bundle, _ name: String) throws -> [Float] {
        guard let url = bundle.url(forResource: name, withExtension: "f32") else {
            throw BenchError.noResource("\(name).f32")
        }
        let data = try Data(contentsOf: url)
        var values = [Float](repeating: 0, count: data.count / 4)
        _ = values.withUnsafeMutableBytes { data.copyBytes(to: $0) }
        return values
    }

    /// The largest difference from what edgekd's host computed, over the largest value it computed.
    func parity(_ bundle: Bundle, _ output: MLFeatureProvider) throws -> Any {
        guard bundle.url(forResource: "expected", withExtension: "f32") != nil,
            let name = output.featureNames.sorted().first, output.featureNames.count == 1,
            let found = output.featureValue(for: name)?.multiArrayValue
        else { return NSNull() }
        let expected = try floats(bundle, "expected")
        guard expected.count == found.count else { return 1e30 }
        var worst: Float = 0
        for index in 0..<found.count { worst = max(worst, abs(found[index].floatValue - expected[index])) }
        let scale = max(expected.map { abs($0) }.max() ?? 0, 1e-12)
        return Double(worst / scale)
    }

    /// `pixels`: in the order of the model's input; an image input takes them as BGRA bytes.
    static func provider(_ model: MLModel, _ pixels: [Float]) throws -> MLFeatureProvider {
        guard let (name, description) = model.modelDescription.inputDescriptionsByName.first else {
            throw BenchError.unsupportedInput("none")
        }
        if let constraint = description.multiArrayConstraint {
            let array = try MLMultiArray(shape: constraint.shape, dataType: constraint.dataType)
            for index in 0..<min(array.count, pixels.count) { array[index] = NSNumber(value: pixels[index]) }
            return try MLDictionaryFeatureProvider(dictionary: [name: MLFeatureValue(multiArray: array)])
        }
        if let constraint = description.imageConstraint {
            let buffer = try image(constraint, pixels)
            return try MLDictionaryFeatureProvider(dictionary: [name: MLFeatureValue(pixelBuffer: buffer)])
        }
        throw BenchError.unsupportedInput(name)
    }

    static func image(_ constraint: MLImageConstraint, _ pixels: [Float]) throws -> CVPixelBuffer {
        var made: CVPixelBuffer?
        let (width, height) = (constraint.pixelsWide, constraint.pixelsHigh)
        CVPixelBufferCreate(nil, width, height, constraint.pixelFormatType, nil, &made)
        guard let buffer = made else { throw BenchError.unsupportedInput("image") }
        CVPixelBufferLockBaseAddress(buffer, [])
        defer { CVPixelBufferUnlockBaseAddress(buffer, []) }
        guard let base = CVPixelBufferGetBaseAddress(buffer) else { throw BenchError.unsupportedInput("image") }
        let row = CVPixelBufferGetBytesPerRow(buffer)
        let channels = constraint.pixelFormatType == kCVPixelFormatType_OneComponent8 ? 1 : 4
        let plane = width * height
        for y in 0..<height {
            for x in 0..<width {
                for channel in 0..<channels {
                    // BGRA from planes R, G, B; alpha is opaque.
                    let source = channels == 1 ? 0 : 2 - channel
                    let index = source * plane + y * width + x
                    let value = channel == 3 || index >= pixels.count ? 255 : pixels[index]
                    base.storeBytes(of: UInt8(min(255, max(0, value))), toByteOffset: y * row + x * channels + channel, as: UInt8.self)
                }
            }
        }
        return buffer
    }

    /// Core ML's own plan: which device each operation prefers; empty before iOS 17.4 and macOS 14.4.
    func placement(_ compiled: URL) -> [[String: Any]] {
        guard #available(iOS 17.4, macOS 14.4, *), let configuration = try? configuration() else { return [] }
        let done = DispatchSemaphore(value: 0)
        let rows = Rows()
        Task.detached {
            defer { done.signal() }
            guard let plan = try? await MLComputePlan.load(contentsOf: compiled, configuration: configuration),
                case .program(let program) = plan.modelStructure, let main = program.functions["main"]
            else { return }
            for operation in main.block.operations where operation.operatorName != "const" {
                var unit = "unknown"
                switch plan.deviceUsage(for: operation)?.preferred {
                case .some(.cpu): unit = "CPU"
                case .some(.gpu): unit = "GPU"
                case .some(.neuralEngine): unit = "Neural Engine"
                default: break
                }
                let name = operation.outputs.first?.name ?? ""
                rows.values.append(["name": name, "op_type": operation.operatorName, "unit": unit])
            }
        }
        done.wait()
        return rows.values
    }

    static func wallNs() -> Int { Int(clock_gettime_nsec_np(CLOCK_UPTIME_RAW)) }
    static func cpuNs() -> Int { Int(clock_gettime_nsec_np(CLOCK_PROCESS_CPUTIME_ID)) }

    static func sysctl(_ name: String) -> String {
        var size = 0
        guard sysctlbyname(name, nil, &size, nil, 0) == 0, size > 1 else { return "" }
        var text = [CChar](repeating: 0, count: size)
        sysctlbyname(name, &text, &size, nil, 0)
        return String(cString: text)
    }

    static func footprintMib() -> Double? {
        var info = task_vm_info_data_t()
        var count = mach_msg_type_number_t(MemoryLayout<task_vm_info_data_t>.size / MemoryLayout<natural_t>.size)
        let result = withUnsafeMutablePointer(to: &info) {
            $0.withMemoryRebound(to: integer_t.self, capacity: Int(count)) {
                task_info(mach_task_self_, task_flavor_t(TASK_VM_INFO), $0, &count)
            }
        }
        return result == KERN_SUCCESS ? Double(info.phys_footprint) / 1048576 : nil
    }
}
