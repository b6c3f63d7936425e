//! Values, with the unusual features of serde_json.

// The other tests need more of them.
#[allow(dead_code)]
#[path = "../it/folder.rs"]
mod folder;
#[path = "../it/model.rs"]
mod model;
#[allow(dead_code)]
#[path = "../it/random.rs"]
mod random;
#[path = "../it/values.rs"]
mod values;

use jam_session::{ErrorKind, MemorySessions};
use serde_json::Value;

/// Numbers of any size and precision, which serde_json has with `arbitrary_precision`.
#[tokio::test]
async fn p05_numbers_of_any_precision_are_read_back_equal_or_refused() {
    let plain = MemorySessions::new();
    let own = MemorySessions::builder().serializer(values::MessagePack).build().unwrap();
    for (text, is_small) in [
        ("1", true),
        ("-9223372036854775808", true),
        ("18446744073709551615", true),
        ("0.09144338512092887", true),
        ("1.5e300", true),
        ("18446744073709551616", false),
        ("123456789012345678901234567890123456789012345678901234567890", false),
        ("0.1000000000000000055511151231257827", false),
        ("1e400", false),
        ("1e-400", false),
    ] {
        let value: Value = serde_json::from_str(&format!(r#"{{"n":{text},"deep":[{text}]}}"#)).unwrap();
        let id = plain.create("ada", &value).await.unwrap();
        let read = plain.get(&id).await.unwrap().unwrap();
        assert_eq!(read.get::<Value>("n").unwrap().unwrap().to_string(), value["n"].to_string());
        assert_eq!(read.get::<Value>("deep").unwrap().unwrap(), value["deep"]);
        match own.create("ada", &value).await {
            Ok(id) => {
                let read = own.get(&id).await.unwrap().unwrap();
                assert!(is_small, "{text}");
                assert_eq!(read.get::<f64>("n").unwrap(), Some(text.parse().unwrap()));
            }
            Err(error) => assert!(!is_small && error.kind() == ErrorKind::Data, "{text}: {error}"),
        }
    }
}
