use proptest::prelude::*;

use super::*;

fn set(text: &str) -> Result<Set, String> {
    xml::parse("t.xml", text, Some(Path::new("/nonexistent"))).map_err(|error| error.to_string())
}

fn fingerprints(inner: &str) -> Fingerprints {
    Fingerprints::of(vec![set(&format!("<fingerprints matches=\"k\" protocol=\"FTP\">{inner}</fingerprints>")).unwrap()])
}

#[test]
fn the_builtin_fingerprints_hold_what_their_examples_say() {
    let report = check::builtin_set();
    assert_eq!(report.failures, [""; 0]);
    assert_eq!(report.warnings, [""; 0]);
    assert!(report.examples >= report.fingerprints && report.fingerprints == Fingerprints::builtin().len(), "{report:?}");
}

#[test]
fn what_matches_is_told() {
    let ours = Fingerprints::builtin();
    let found = ours.identify(keys::SSH_BANNER, "OpenSSH_9.2p1 Debian-2+deb12u10").unwrap();
    let mut service = Service::default();
    apply(&found, &mut service);
    assert_eq!((service.name.as_str(), service.product.as_deref(), service.version.as_deref()), ("ssh", Some("OpenSSH"), Some("9.2p1")));
    assert_eq!((service.extra.as_deref(), service.os.as_deref()), (Some("Debian-2+deb12u10"), Some("Debian Linux 12")));
    assert_eq!(service.cpes, ["cpe:/a:openbsd:openssh:9.2p1", "cpe:/o:debian:debian_linux:12"]);
    assert_eq!(ours.identify(keys::SSH_BANNER, "something else"), None);
    assert_eq!(ours.identify("no.such.key", "nginx"), None);
}

#[test]
fn what_a_service_said_stays_apart_from_what_we_say() {
    let ours = fingerprints(
        r#"<fingerprint pattern="^(\S+) (\d+)?(?: on (.+))?$"><description>d</description>
           <param pos="1" name="service.product"/><param pos="2" name="service.version"/><param pos="3" name="_tmp.001"/>
           <param pos="0" name="service.cpe23" value="cpe:/a:x:{service.product}:{service.version}"/>
           <param pos="0" name="host.name" value="{_tmp.001}.example"/></fingerprint>"#,
    );
    let params = |text: &str| ours.identify("k", text).unwrap().params;
    // Nothing that was said is read as a place to fill in, and nothing breaks a CPE name apart.
    let odd = params("{service.version} 7");
    assert_eq!(odd["service.product"], "{service.version}");
    assert_eq!(params("a:b/c 7")["service.cpe23"], "cpe:/a:x:a_b_c:7");
    // An unknown version is a dash in a CPE name; any other text with an unknown part is not known.
    let unknown = params("x ");
    assert_eq!(unknown["service.cpe23"], "cpe:/a:x:x:-");
    assert!(!unknown.contains_key("host.name") && !unknown.contains_key("service.version"));
    let all = params("x 1 on attic");
    assert_eq!((all["host.name"].as_str(), all["service.protocol"].as_str()), ("attic.example", "ftp"));
    assert!(!all.contains_key("_tmp.001"));
}

#[test]
fn a_service_is_filled_where_it_knows_nothing() {
    let told = |params: &[(&str, &str)]| Match {
        description: String::new(),
        params: params.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
    };
    let mut service = Service { product: Some("known".into()), facts: vec![("hw.product".into(), "known".into())], ..Service::default() };
    apply(
        &told(&[
            ("service.product", "other"),
            ("service.version", " 1\u{0}\u{1b}.2\r\n"),
            ("hw.device", "Printer"),
            ("hw.product", "other"),
            ("hw.vendor", "Example"),
            ("os.vendor", "Example"),
            ("os.product", "Example OS"),
            ("os.version", "4"),
            ("os.cpe23", "cpe:/o:example:example_os:4"),
            ("service.certainty", "0.5"),
            ("unheard.of", "x"),
        ]),
        &mut service,
    );
    assert_eq!((service.product.as_deref(), service.version.as_deref()), (Some("known"), Some("1.2")));
    assert_eq!((service.device.as_deref(), service.os.as_deref()), (Some("printer"), Some("Example OS 4")));
    assert_eq!(service.cpes, ["cpe:/o:example:example_os:4"]);
    let facts: Vec<&str> = service.facts.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(facts, ["hw.product", "hw.vendor", "os.vendor", "os.version"]);
    assert_eq!(service.fact("hw.product"), Some("known"));
}

#[test]
fn a_directory_goes_before_what_is_built_in() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    assert!(matches!(Fingerprints::with_dir(dir.path()), Err(FingerprintError::Nothing { .. })));
    write("readme.txt", "no fingerprints");
    let own = |preference: &str, product: &str| {
        format!(
            "<?xml version='1.0'?>\n<fingerprints matches='http_header.server' {preference}>\n<fingerprint pattern='^nginx'>\
             <param pos='0' name='service.product' value='{product}'/></fingerprint>\n</fingerprints>\n"
        )
    };
    write("a.xml", &own("", "of the directory"));
    let product =
        || Fingerprints::with_dir(dir.path()).unwrap().identify(keys::HTTP_SERVER, "nginx").unwrap().params["service.product"].clone();
    assert_eq!(product(), "of the directory");
    write("b.xml", &own("preference='0.90'", "preferred"));
    assert_eq!(product(), "preferred");
    write("a.xml", &own("preference='0.01'", "last"));
    write("b.xml", &own("preference='0.01'", "last"));
    assert_eq!(product(), "nginx");
    // What the directory does not know is known still.
    assert!(Fingerprints::with_dir(dir.path()).unwrap().identify(keys::SSH_BANNER, "OpenSSH_9.2p1 Debian-2+deb12u10").is_some());
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_line_and_fingerprint() {
    let whole = |inner: &str| format!("<?xml version=\"1.0\"?>\n<fingerprints matches=\"k\">\n{inner}\n</fingerprints>");
    let long = format!("<fingerprint pattern=\"{}\"/>", "a".repeat(PATTERN_MAX + 1));
    for (text, parts) in [
        ("nothing".to_owned(), &["t.xml:1: there is no `fingerprints`"][..]),
        ("\n<html></html>".to_owned(), &["t.xml:2: `html` stands where `fingerprints` is wanted"]),
        ("<fingerprints/>".to_owned(), &["t.xml:1:", "lacks its `matches`"]),
        ("<fingerprints matches='k' preference='2'/>".to_owned(), &["`2` is no preference"]),
        ("<fingerprints matches='k'>\n<fingerprint pattern='x'>\n</fingerprints>".to_owned(), &["t.xml:3:", "not XML"]),
        (whole("<fingerprint/>"), &["t.xml:3:", "lacks its `pattern`"]),
        (whole("<fingerprint pattern=''/>"), &["t.xml:3:", "empty pattern"]),
        (whole(&long), &["t.xml:3:", "too long"]),
        (whole("<fingerprint pattern='x' flags='REG_ODD'/>"), &["t.xml:3: fingerprint `x`: the flag `REG_ODD` is not known"]),
        (
            whole("<fingerprint pattern='x'>\n<description>This\n one</description>\n<param pos='a' name='n'/></fingerprint>"),
            &["t.xml:6: fingerprint `This one`: `a` is no `pos`"],
        ),
        (whole("<fingerprint pattern='x'><param name='n'/></fingerprint>"), &["`param` n lacks its `pos`"]),
        (whole("<fingerprint pattern='x'><param pos='0'/></fingerprint>"), &["lacks its `name`"]),
        (whole("<fingerprint pattern='x'><param pos='0' name='n'/></fingerprint>"), &["`pos` 0 and no `value`"]),
        (whole("<fingerprint pattern='x'><param pos='1' name='n' value='v'/></fingerprint>"), &["both a group and a `value`"]),
        (whole("<fingerprint pattern='x'><example _encoding='rot13'>y</example></fingerprint>"), &["encoding `rot13` is not known"]),
        (whole("<fingerprint pattern='x'><example _encoding='base64'>!</example></fingerprint>"), &["not base64"]),
        (whole("<fingerprint pattern='x'><example _filename='../../etc/passwd'/></fingerprint>"), &["leaves /nonexistent"]),
        (whole("<fingerprint pattern='x'><example _filename='none'/></fingerprint>"), &["read an example from /nonexistent/none"]),
        (whole("<fingerprint pattern='x'><example>&bomb;</example></fingerprint>"), &["`&bomb;` is not known"]),
        (whole("<param pos='0' name='n' value='v'/>"), &["t.xml:3:", "outside of a fingerprint"]),
    ] {
        let error = set(&text).unwrap_err();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}\n for {text}");
    }
}

#[test]
fn xml_is_read_as_xml() {
    let text = "<!-- c --><fingerprints matches=\"k\"><odd><er/></odd><fingerprint pattern=\"^a&lt;b&#38;&quot;$\">\
                <example>a&lt;b&amp;\"</example><example><![CDATA[a<b&\"]]></example><example _encoding=\"base64\">YTxi\nJiI=</example>\
                </fingerprint></fingerprints>";
    let set = set(text).unwrap();
    assert_eq!(set.entries[0].pattern.text(), "^a<b&\"$");
    assert_eq!(set.entries[0].examples.len(), 3);
    assert!(set.entries[0].examples.iter().all(|example| example.text == b"a<b&\""), "{:?}", set.entries[0].examples);
}

#[test]
fn patterns_mean_what_they_mean_in_recog() {
    let matches = |pattern: &str, flags: &str, text: &str| {
        let inner = format!("<fingerprint pattern=\"{pattern}\" flags=\"{flags}\"/>");
        fingerprints(&inner).identify("k", text).is_some()
    };
    assert!(matches("^b$", "", "a\nb\nc"), "lines have beginnings and ends");
    assert!(!matches("A", "", "a") && matches("A", "REG_ICASE", "a"));
    assert!(!matches("a.b", "", "a\nb") && matches("a.b", "REG_DOT_NEWLINE,REG_ICASE", "A\nb"));
    assert!(matches(r"^\xff\x00a", "", &text_of(b"\xff\0a")), "a byte that is no text is the character of its number");
    assert!(matches("^ü$", "", &text_of("ü".as_bytes())));
}

#[test]
fn patterns_that_cannot_be_used_are_left_out_and_found_by_the_check() {
    let text = "<fingerprints matches=\"k\">\n\
                <fingerprint pattern=\"a(?=b)\"><description>looks ahead</description><example>ab</example></fingerprint>\n\
                <fingerprint pattern=\"(?:(?:a{1,100}){1,100}){1,100}\"><description>huge</description><example>a</example></fingerprint>\n\
                <fingerprint pattern=\"(a)\"><description>group</description><example>a</example><param pos=\"2\" name=\"n\"/></fingerprint>\n\
                <fingerprint pattern=\"^a(b)?$\"><description>good</description><example n=\"b\">ab</example>\
                <example n=\"c\">ab</example><example n=\"b\">a</example>\n<example>x</example><param pos=\"1\" name=\"n\"/></fingerprint>\n\
                </fingerprints>";
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("t.xml"), text).unwrap();
    let place = dir.path().join("t.xml").display().to_string();
    let report = check::directory(dir.path()).unwrap();
    assert_eq!((report.files, report.fingerprints, report.examples), (1, 4, 7));
    let wanted = [
        "2: fingerprint `looks ahead`: the pattern cannot be used: look-around",
        "3: fingerprint `huge`: the pattern cannot be used: the pattern compiles to more than",
        "4: fingerprint `group`: `param` n names group 2, the pattern has 1",
        "5: fingerprint `good`: n of the example \"ab\" is \"b\", not \"c\"",
        "5: fingerprint `good`: the example \"a\" gives no n, \"b\" is expected",
        "6: fingerprint `good`: does not match its example \"x\"",
    ];
    assert_eq!(report.failures.len(), wanted.len(), "{:#?}", report.failures);
    for (failure, wanted) in report.failures.iter().zip(wanted) {
        assert!(failure.strip_prefix(&place).unwrap().trim_start_matches(':').starts_with(wanted), "{failure}\n{wanted}");
    }
    // In use the others work on.
    let ours = Fingerprints::with_dir(dir.path()).unwrap();
    assert_eq!(ours.identify("k", "ab").unwrap().description, "group");
}

#[test]
fn long_texts_are_cut_between_characters() {
    let ours = fingerprints("<fingerprint pattern=\"end$\"/>");
    assert!(ours.identify("k", "the end").is_some());
    assert!(ours.identify("k", &format!("{}end", "ü".repeat(TEXT_BOUND))).is_none());
    assert_eq!(text_of(&[b'a'; 3 * TEXT_BOUND]).len(), TEXT_BOUND);
    let cut = text_of(format!("a{}", "ü".repeat(TEXT_BOUND)).as_bytes());
    assert_eq!(cut.len(), TEXT_BOUND - 1);
    assert!(cut.ends_with('ü'));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_bytes_of_the_network_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..800), cut in 0usize..40) {
        let ours = Fingerprints::builtin();
        let text = text_of(&bytes);
        for key in keys::ALL {
            if let Some(found) = ours.identify(key, &text) {
                let mut service = Service::default();
                apply(&found, &mut service);
                let before = service.clone();
                service.clip();
                prop_assert_eq!(&service, &before);
            }
        }
        // The beginnings of real ones, with anything behind.
        let started = format!("{}{text}", &"OpenSSH_9.2p1 Debian-2+deb12u10 nginx/1.2"[..cut]);
        for key in keys::ALL {
            if let Some(found) = ours.identify(key, &started) {
                let mut service = Service::default();
                apply(&found, &mut service);
                let texts = [&service.product, &service.version, &service.extra, &service.os];
                prop_assert!(texts.into_iter().flatten().all(|text| text.len() <= TEXT_MAX && !text.chars().any(char::is_control)));
            }
        }
    }

    #[test]
    fn any_file_is_read_or_refused(text in "\\PC*", inner in "[<>/a-z&;\"'= \\n]{0,200}") {
        let _ = set(&text);
        let _ = set(&format!("<fingerprints matches=\"k\"><fingerprint pattern=\"{text}\">{inner}</fingerprint></fingerprints>"));
        let _ = set(&format!("<fingerprints matches=\"k\">{inner}</fingerprints>"));
    }

    #[test]
    fn any_pattern_is_compiled_or_refused_in_bounded_time(pattern in "[a-c.*+?{}()0-9,|\\[\\]^$\\\\]{1,80}", text in "[a-c0-9]{0,300}") {
        if let Ok(pattern) = pattern::Pattern::new(pattern, pattern::Flags::default()) {
            let _ = pattern.groups(&text, String::new);
        }
    }
}
