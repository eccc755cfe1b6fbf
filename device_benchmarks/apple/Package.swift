// swift-tools-version:5.9
import PackageDescription

let package = Package(
    name: "EdgekdBench",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [.library(name: "EdgekdBench", targets: ["EdgekdBench"])],
    targets: [
        .target(
            name: "EdgekdBench",
            resources: [
                .copy("Resources/Model.mlpackage"), .copy("Resources/manifest.json"), .copy("Resources/input.f32"),
                // EXPECTED
            ]),
        .testTarget(name: "EdgekdBenchTests", dependencies: ["EdgekdBench"]),
    ]
)
