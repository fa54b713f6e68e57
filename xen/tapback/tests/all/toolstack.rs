//! The writes of xl and of xenopsd, in their order (`xenstore-tapback.md` §6, §7).

use crate::guest::Guest;

impl Guest<'_> {
    /// libxl's transaction. Its script comes after state 2.
    pub fn xl_plug(&self, mode: &str) {
        let (back, front) = (self.back(""), self.front(""));
        let domid = self.domid.to_string();
        let rows = [
            (format!("{back}frontend-id"), domid.as_str()),
            (format!("{back}params"), "aio:/srv/disk.img"),
            (format!("{back}script"), "/etc/xen/scripts/block-tap"),
            (format!("{back}online"), "1"),
            (format!("{back}removable"), "0"),
            (format!("{back}bootable"), "1"),
            (format!("{back}state"), "1"),
            (format!("{back}dev"), "xvda"),
            (format!("{back}type"), "vbd3"),
            (format!("{back}mode"), mode),
            (format!("{back}device-type"), self.kind),
            (format!("{back}discard-enable"), "1"),
            (format!("{back}frontend"), front.trim_end_matches('/')),
            (format!("{front}backend-id"), "0"),
            (format!("{front}state"), "1"),
            (format!("{front}device-type"), self.kind),
            (format!("{front}backend"), back.trim_end_matches('/')),
        ];
        self.write_rows(&rows);
    }

    /// xenopsd's transaction; no device type on our side. Its script comes at any time.
    pub fn xenopsd_plug(&self) {
        let (back, front) = (self.back(""), self.front(""));
        let domid = self.domid.to_string();
        let rows = [
            (format!("{back}frontend"), front.trim_end_matches('/')),
            (format!("{back}frontend-id"), domid.as_str()),
            (format!("{back}online"), "1"),
            (format!("{back}removable"), "0"),
            (format!("{back}state"), "1"),
            (format!("{back}dev"), "xvda"),
            (format!("{back}type"), "phy"),
            (format!("{back}mode"), "w"),
            (format!("{back}params"), "nbd:unix:/run/blktap-control/nbd/sr/vdi:exportname=vdi"),
            (format!("{back}polling-duration"), "8000"),
            (format!("{back}polling-idle-threshold"), "50"),
            (format!("{front}backend-id"), "0"),
            (format!("{front}state"), "1"),
            (format!("{front}device-type"), self.kind),
            (format!("{front}backend"), back.trim_end_matches('/')),
        ];
        self.write_rows(&rows);
    }

    /// block-tap, and xenopsd's block script: the path, then that it is done.
    pub fn script(&self, path: &str) {
        self.fake.write(&self.back("physical-device-path"), path);
        self.fake.write(&self.back("hotplug-status"), "connected");
    }

    /// The polite unplug of both.
    pub fn ask_to_go(&self) {
        self.write_rows(&[(self.back("online"), "0"), (self.back("state"), "5")]);
    }

    fn write_rows(&self, rows: &[(String, &str)]) {
        let rows: Vec<(&str, &str)> = rows.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        self.fake.write_all(&rows);
    }
}
