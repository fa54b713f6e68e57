//! The frontend in a guest: what it writes, and what it waits for.

use xenstore_fake::Fake;

pub struct Guest<'a> {
    pub fake: &'a Fake,
    pub domid: u32,
    pub devid: u32,
    /// `disk` or `cdrom`.
    pub kind: &'static str,
    /// Of the domain that tapback runs in.
    pub backend_domid: u32,
}

impl<'a> Guest<'a> {
    pub fn new(fake: &'a Fake, domid: u32, devid: u32) -> Guest<'a> {
        fake.set_introduced(domid, true);
        Guest { fake, domid, devid, kind: "disk", backend_domid: 0 }
    }

    /// A key of the backend's directory.
    pub fn back(&self, key: &str) -> String {
        let Guest { domid, devid, backend_domid, .. } = self;
        format!("/local/domain/{backend_domid}/backend/vbd3/{domid}/{devid}/{key}")
    }

    /// A key of the frontend's directory.
    pub fn front(&self, key: &str) -> String {
        format!("/local/domain/{}/device/vbd/{}/{key}", self.domid, self.devid)
    }

    /// A key of the backend's error directory.
    pub fn error(&self) -> Option<String> {
        self.fake.get(&self.error_path())
    }

    pub fn error_path(&self) -> String {
        let Guest { domid, devid, backend_domid, .. } = self;
        format!("/local/domain/{backend_domid}/error/backend/vbd3/{domid}/{devid}/error")
    }

    pub fn get(&self, key: &str) -> Option<String> {
        self.fake.get(&self.back(key))
    }

    pub fn enter(&self, state: u32) {
        self.fake.write(&self.front("state"), &state.to_string());
    }

    pub fn wait_backend(&self, state: u32) {
        self.fake.wait_for(&self.back("state"), &state.to_string());
    }

    /// The ring's keys, and state 3.
    pub fn start(&self, refs: &[u32]) {
        self.ring(refs, Some("x86_64-abi"));
        self.enter(3);
    }

    pub fn ring(&self, refs: &[u32], protocol: Option<&str>) {
        let order = refs.len().trailing_zeros();
        let mut rows = vec![
            (self.front("event-channel"), "17".to_owned()),
            (self.front("feature-persistent"), "1".to_owned()),
        ];
        match refs {
            [only] => rows.push((self.front("ring-ref"), only.to_string())),
            refs => {
                rows.push((self.front("ring-page-order"), order.to_string()));
                for (n, gref) in refs.iter().enumerate() {
                    rows.push((self.front(&format!("ring-ref{n}")), gref.to_string()));
                }
            }
        }
        rows.extend(protocol.map(|name| (self.front("protocol"), name.to_owned())));
        let rows: Vec<(&str, &str)> = rows.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        self.fake.write_all(&rows);
    }
}
