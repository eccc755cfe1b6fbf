// One test: measures, and leaves the JSON in the log between two markers and as an attachment named result.json.

import XCTest

@testable import EdgekdBench

final class BenchTests: XCTestCase {
    func testMeasure() throws {
        var settings = Settings()
        if let units = ProcessInfo.processInfo.environment["EDGEKD_COMPUTE_UNITS"] { settings.computeUnits = units }
        let json = try Bench(settings).run()
        print("EDGEKD-RESULT-BEGIN")
        print(json)
        print("EDGEKD-RESULT-END")
        let attachment = XCTAttachment(data: Data(json.utf8), uniformTypeIdentifier: "public.json")
        attachment.name = "result.json"
        attachment.lifetime = .keepAlways
        add(attachment)
    }
}
