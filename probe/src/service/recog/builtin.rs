//! The fingerprints that Picket brings: one file a key, written for Picket from products' documentation and from what the
//! products say in the lab of the tests.

use super::{Set, xml};

const FILES: [(&str, &str); 2] =
    [("ssh_banner.xml", include_str!("data/ssh_banner.xml")), ("http_server.xml", include_str!("data/http_server.xml"))];

/// All of them. Their examples are kept only for who checks them.
pub(super) fn sets(keep_examples: bool) -> Vec<Set> {
    let examples = keep_examples.then(|| std::path::Path::new("builtin"));
    let parse = |(name, text): &(&str, &str)| xml::parse(&format!("builtin/{name}"), text, examples);
    let read = FILES.iter().map(parse).collect::<Result<Vec<_>, _>>();
    read.expect("a test reads the files that are built in")
}
