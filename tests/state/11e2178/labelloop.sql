BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0012_learn_config');
CREATE TABLE dashboard_refusals (
	client TEXT NOT NULL, 
	refused INTEGER NOT NULL, 
	since DOUBLE NOT NULL, 
	PRIMARY KEY (client)
);
CREATE TABLE export_watches (
	project INTEGER NOT NULL, 
	place TEXT NOT NULL, 
	accepted INTEGER NOT NULL, 
	newest TEXT NOT NULL, 
	exported_at DOUBLE NOT NULL, 
	version TEXT DEFAULT '' NOT NULL, 
	outcome TEXT DEFAULT '' NOT NULL, 
	PRIMARY KEY (project, place)
);
CREATE TABLE inbox_claims (
	topic TEXT NOT NULL, 
	subject TEXT NOT NULL, 
	token TEXT NOT NULL, 
	worker TEXT NOT NULL, 
	leased_until DOUBLE NOT NULL, 
	PRIMARY KEY (topic, subject), 
	UNIQUE (token)
);
INSERT INTO "inbox_claims" VALUES('qc.task','7:6','e33d5e8b848f4f0a86f85eeaee208826','{"host":"gone","pid":1,"started":"1"}',1.79601830948964810369e+09);
CREATE TABLE inbox_events (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	topic TEXT NOT NULL, 
	subject TEXT NOT NULL, 
	"key" TEXT NOT NULL, 
	payload TEXT NOT NULL, 
	state TEXT NOT NULL, 
	attempts INTEGER DEFAULT '0' NOT NULL, 
	created_at DOUBLE NOT NULL, 
	due_at DOUBLE NOT NULL, 
	finished_at DOUBLE, 
	claim TEXT, 
	reason TEXT DEFAULT '' NOT NULL, 
	CONSTRAINT inbox_events_topic_key UNIQUE (topic, "key")
);
INSERT INTO "inbox_events" VALUES(1,'qc.task','7:1','annotation:2:2026-01-01T00:00:04.000000Z','{"source":"poll"}','done',1,1.79601827853659343726e+09,1.79601827853659343726e+09,1.79601827864425539968e+09,'0bb0842b322e4e288c17e4b1462c1acb','');
INSERT INTO "inbox_events" VALUES(2,'qc.task','7:1','annotation:1:2026-01-01T00:00:02.000000Z','{"source":"poll"}','done',1,1.79601827854958724975e+09,1.79601827854958724975e+09,1.79601827864425539968e+09,'0bb0842b322e4e288c17e4b1462c1acb','');
INSERT INTO "inbox_events" VALUES(3,'qc.task','7:2','annotation:4:2026-01-01T00:00:09.000000Z','{"source":"poll"}','done',1,1.79601827855354571339e+09,1.79601827855354571339e+09,1.79601827943405127521e+09,'a49ceefa592d45cf81c3ce7f09056186','');
INSERT INTO "inbox_events" VALUES(4,'qc.task','7:2','annotation:3:2026-01-01T00:00:07.000000Z','{"source":"poll"}','done',1,1.79601827855755925185e+09,1.79601827855755925185e+09,1.79601827943405127521e+09,'a49ceefa592d45cf81c3ce7f09056186','');
INSERT INTO "inbox_events" VALUES(5,'qc.task','7:3','pending','{"source":"a webhook"}','pending',0,1.79601827943452310555e+09,1.79601827943452310555e+09,NULL,NULL,'');
INSERT INTO "inbox_events" VALUES(6,'qc.task','7:4','retried','{}','pending',1,1.79601827944175672533e+09,1.79601828142311143875e+09,NULL,NULL,'Label Studio did not answer');
INSERT INTO "inbox_events" VALUES(7,'qc.task','7:5','dead','{}','dead',1,1.7960182794657020569e+09,1.7960182794657020569e+09,1.79601827947616577143e+09,'d3328daee4174986b3a6b2cb022dd0cb','unreadable');
INSERT INTO "inbox_events" VALUES(8,'qc.task','7:6','claimed','{}','claimed',1,1.79601827947701430318e+09,1.79601827947701430318e+09,NULL,'e33d5e8b848f4f0a86f85eeaee208826','');
INSERT INTO "inbox_events" VALUES(9,'qc.task','7:8','orphan','{}','claimed',1,1.0,1.0,NULL,'nobody','');
CREATE TABLE learn_looks (
	project INTEGER NOT NULL, 
	task INTEGER NOT NULL, 
	backbone TEXT NOT NULL, 
	photo TEXT NOT NULL, 
	vector BLOB NOT NULL, 
	version TEXT DEFAULT '' NOT NULL, 
	doubt DOUBLE, 
	score DOUBLE, 
	PRIMARY KEY (project, task)
);
CREATE TABLE learn_opinions (
	project INTEGER NOT NULL, 
	task INTEGER NOT NULL, 
	note TEXT NOT NULL, 
	score DOUBLE NOT NULL, 
	told_at DOUBLE NOT NULL, 
	PRIMARY KEY (project, task)
);
CREATE TABLE learn_projects (
	project INTEGER NOT NULL, 
	connected_at DOUBLE NOT NULL, 
	cursor TEXT DEFAULT '' NOT NULL, 
	swept_at DOUBLE, 
	fingerprint TEXT DEFAULT '' NOT NULL, 
	phase TEXT DEFAULT '' NOT NULL, 
	phase_done INTEGER DEFAULT '0' NOT NULL, 
	phase_total INTEGER DEFAULT '0' NOT NULL, 
	phase_at DOUBLE, config TEXT DEFAULT '' NOT NULL, untold_since DOUBLE, 
	PRIMARY KEY (project)
);
INSERT INTO "learn_projects" VALUES(7,1.0,'2026-01-01T00:00:09.000000Z',2.0,'f','',0,0,0.0,'c',NULL);
CREATE TABLE learn_runs (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	project INTEGER NOT NULL, 
	asked_at DOUBLE NOT NULL, 
	started_at DOUBLE NOT NULL, 
	finished_at DOUBLE NOT NULL, 
	source TEXT NOT NULL, 
	tasks INTEGER NOT NULL, 
	held_out INTEGER NOT NULL, 
	boxes INTEGER NOT NULL, 
	classes TEXT DEFAULT '{}' NOT NULL, 
	base TEXT DEFAULT '' NOT NULL, 
	parent TEXT DEFAULT '' NOT NULL, 
	version TEXT DEFAULT '' NOT NULL, 
	verdict TEXT NOT NULL, 
	judged_by TEXT DEFAULT '' NOT NULL, 
	reason TEXT DEFAULT '' NOT NULL, 
	ap50 DOUBLE, 
	parent_ap50 DOUBLE, 
	tolerance DOUBLE, 
	metrics TEXT DEFAULT '{}' NOT NULL, 
	seconds TEXT DEFAULT '{}' NOT NULL
);
CREATE TABLE learn_tasks (
	project INTEGER NOT NULL, 
	task INTEGER NOT NULL, 
	seen TEXT NOT NULL, 
	state TEXT NOT NULL, 
	reason TEXT DEFAULT '' NOT NULL, 
	annotations TEXT DEFAULT '[]' NOT NULL, 
	photos TEXT DEFAULT '[]' NOT NULL, 
	boxes INTEGER DEFAULT '0' NOT NULL, 
	shown TEXT, 
	shown_version TEXT DEFAULT '' NOT NULL, 
	annotator INTEGER, 
	lead_time DOUBLE, 
	drawn_at TEXT DEFAULT '' NOT NULL, 
	learned TEXT, 
	read_at DOUBLE NOT NULL, found TEXT, 
	PRIMARY KEY (project, task)
);
CREATE TABLE periodic_turns (
	name TEXT NOT NULL, 
	token TEXT DEFAULT '' NOT NULL, 
	worker TEXT DEFAULT '' NOT NULL, 
	leased_until DOUBLE DEFAULT '0' NOT NULL, 
	started_at DOUBLE DEFAULT '0' NOT NULL, 
	PRIMARY KEY (name)
);
CREATE TABLE qc_actions (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	project INTEGER NOT NULL, 
	task INTEGER NOT NULL, 
	route TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	"before" TEXT NOT NULL, 
	"after" TEXT NOT NULL, 
	state TEXT NOT NULL, 
	created_at DOUBLE NOT NULL
);
INSERT INTO "qc_actions" VALUES(1,7,1,'one_more_annotator+flag','disputed by 2 annotators, 0.695 errors likely, 0.271 to gain; disputed','{"overlap": 2, "is_labeled": true, "keys": {}}','{"overlap": 3, "is_labeled": false, "keys": {"qc_status": "disputed", "qc_agreement": 0.0, "qc_annotators": 2, "qc_note": "One has a Car at the upper left, another has not. One has a Car at the upper right, another has not.", "qc_review": "no"}}','done',1.79601827861585640905e+09);
INSERT INTO "qc_actions" VALUES(2,7,2,'flag','agreed','{"keys": {}}','{"keys": {"qc_status": "agreed", "qc_agreement": 0.9512, "qc_annotators": 2, "qc_note": "2 of 2 annotators agree.", "qc_review": "no"}}','done',1.79601827941188836104e+09);
CREATE TABLE qc_annotations (
	annotation INTEGER NOT NULL, 
	task INTEGER NOT NULL, 
	project INTEGER NOT NULL, 
	updated_at TEXT NOT NULL, annotator INTEGER, 
	PRIMARY KEY (annotation, task)
);
INSERT INTO "qc_annotations" VALUES(2,1,7,'2026-01-01T00:00:04.000000Z',2);
INSERT INTO "qc_annotations" VALUES(1,1,7,'2026-01-01T00:00:02.000000Z',1);
INSERT INTO "qc_annotations" VALUES(4,2,7,'2026-01-01T00:00:09.000000Z',2);
INSERT INTO "qc_annotations" VALUES(3,2,7,'2026-01-01T00:00:07.000000Z',1);
CREATE TABLE qc_boards (
	project INTEGER NOT NULL, 
	made_at DOUBLE NOT NULL, 
	took_s DOUBLE NOT NULL, 
	tasks INTEGER NOT NULL, 
	newest DOUBLE NOT NULL, 
	board TEXT NOT NULL, 
	replay BLOB NOT NULL, 
	PRIMARY KEY (project)
);
CREATE TABLE qc_copies (
	project INTEGER NOT NULL, 
	task INTEGER NOT NULL, 
	review INTEGER NOT NULL, 
	copy INTEGER NOT NULL, 
	fingerprint TEXT NOT NULL, 
	mark TEXT NOT NULL, 
	PRIMARY KEY (project, task)
);
CREATE TABLE qc_crowds (
	project INTEGER NOT NULL, 
	made_at DOUBLE NOT NULL, 
	took_s DOUBLE NOT NULL, 
	tasks INTEGER NOT NULL, 
	newest DOUBLE NOT NULL, 
	crowd TEXT NOT NULL, 
	PRIMARY KEY (project)
);
CREATE TABLE qc_facts (
	project INTEGER NOT NULL, 
	task INTEGER NOT NULL, 
	at DOUBLE NOT NULL, 
	kept_at DOUBLE NOT NULL, 
	kinds TEXT DEFAULT '' NOT NULL, 
	people TEXT DEFAULT '' NOT NULL, 
	facts TEXT NOT NULL, 
	drawing TEXT, 
	PRIMARY KEY (project, task)
);
INSERT INTO "qc_facts" VALUES(7,1,1767225604.0,1.79601827864173793788e+09,' extra missing ',' 1 2 ','[1,[[1,1767225602.0,null,1,false,null,false],[2,1767225604.0,null,1,false,null,false]],[["label",[[1,["Car"],1200.0,0,null]]],["label",[[2,["Car"],1200.0,0,null]]]],[],[[1,2,0.0,{"label":0.0},0,0]],[],["s3://bucket/a b.jpg"],0.0,"disputed",false]','[[["missing","label",[1,2],"One has a Car at the upper left, another has not.",["Car"],[],0],["extra","label",[1,2],"One has a Car at the upper right, another has not.",[],["Car"],0]],[["A",[1],[[[[[0.0,0.1],[0.2,0.1],[0.2,0.4],[0.0,0.4]]],false,"Car",0,[0]]],[]],["B",[2],[[[[[0.6,0.1],[0.8,0.1],[0.8,0.4],[0.6,0.4]]],false,"Car",0,[1]]],[]],["consensus",[],[],[]]],[[200,100]]]');
INSERT INTO "qc_facts" VALUES(7,2,1767225609.0,1.7960182794286057949e+09,'  ',' 1 2 ','[2,[[1,1767225607.0,null,1,false,null,false],[2,1767225609.0,null,1,false,null,false]],[["label",[[1,["Car"],1200.0,0,[0.0,10.0,40.0,40.0]],[2,["Car"],1200.0,0,[1.0,10.0,41.0,40.0]]]]],[],[[1,2,0.95122,{"label":0.95122},1,0]],[],["s3://bucket/a b.jpg"],0.9512195121951219,"agreed",false]',NULL);
CREATE TABLE qc_projects (
	project INTEGER NOT NULL, 
	connected_at DOUBLE NOT NULL, 
	cursor TEXT DEFAULT '' NOT NULL, 
	settled BOOLEAN DEFAULT 0 NOT NULL, 
	polled_at DOUBLE, 
	swept_at DOUBLE, evaluates BOOLEAN, 
	PRIMARY KEY (project)
);
INSERT INTO "qc_projects" VALUES(7,1.79601827851509594918e+09,'2026-01-01T00:00:10.000000Z',0,1.79601827856561303137e+09,1.79601827856561422347e+09,NULL);
CREATE TABLE qc_reviews (
	project INTEGER NOT NULL, 
	review INTEGER, 
	prefilled BOOLEAN DEFAULT 0 NOT NULL, 
	made_at DOUBLE NOT NULL, interface TEXT DEFAULT '' NOT NULL, 
	PRIMARY KEY (project)
);
CREATE TABLE qc_tasks (
	project INTEGER NOT NULL, 
	task INTEGER NOT NULL, 
	born TEXT NOT NULL, 
	fingerprint TEXT NOT NULL, 
	outcome TEXT NOT NULL, 
	agreement DOUBLE, 
	annotators INTEGER NOT NULL, 
	review BOOLEAN DEFAULT 0 NOT NULL, 
	keys TEXT, 
	asked_overlap INTEGER, 
	asked_at INTEGER, 
	found_overlap INTEGER, 
	decided_at DOUBLE NOT NULL, overlay TEXT, stamp TEXT, 
	PRIMARY KEY (project, task)
);
INSERT INTO "qc_tasks" VALUES(7,1,'born-1','d5867b33ed8989d0c8efb030e04976628a69b0fbee37b7cb18e4288c93a56c1e','disputed',0.0,2,0,'{"qc_status": "disputed", "qc_agreement": 0.0, "qc_annotators": 2, "qc_note": "One has a Car at the upper left, another has not. One has a Car at the upper right, another has not.", "qc_review": "no"}',3,2,2,1.79601827862690210336e+09,NULL,'2026-01-01T00:00:05.000000Z');
INSERT INTO "qc_tasks" VALUES(7,2,'born-2','df1630eaabe2d5132e18468fa633218956e6ed49430843b476a1d55f88ed6d86','agreed',9.51219512195121907893e-01,2,0,'{"qc_status": "agreed", "qc_agreement": 0.9512, "qc_annotators": 2, "qc_note": "2 of 2 annotators agree.", "qc_review": "no"}',NULL,NULL,NULL,1.79601827942661547658e+09,NULL,'2026-01-01T00:00:10.000000Z');
CREATE TABLE qc_truths (
	project INTEGER NOT NULL, 
	task INTEGER NOT NULL, 
	annotation INTEGER NOT NULL, 
	annotators INTEGER NOT NULL, 
	ours BOOLEAN NOT NULL, 
	wanted INTEGER, 
	revision INTEGER NOT NULL, 
	carried INTEGER NOT NULL, 
	PRIMARY KEY (project, task)
);
CREATE INDEX inbox_events_state_due ON inbox_events (state, due_at);
CREATE INDEX inbox_events_subject_state ON inbox_events (topic, subject, state);
CREATE INDEX inbox_events_claim ON inbox_events (claim);
CREATE INDEX qc_annotations_task ON qc_annotations (project, task);
CREATE INDEX qc_tasks_outcome ON qc_tasks (project, outcome);
CREATE INDEX qc_actions_task ON qc_actions (project, task);
CREATE INDEX learn_tasks_state ON learn_tasks (project, state);
CREATE INDEX learn_runs_project ON learn_runs (project, id);
CREATE INDEX qc_facts_at ON qc_facts (project, at);
CREATE INDEX qc_facts_kinds ON qc_facts (project, kinds, task, people);
CREATE INDEX qc_facts_kept ON qc_facts (project, kept_at);
CREATE INDEX qc_tasks_agreement ON qc_tasks (project, outcome, agreement, task, review);
CREATE INDEX qc_tasks_decided ON qc_tasks (project, outcome, decided_at, task, review);
CREATE INDEX qc_actions_created ON qc_actions (project, created_at);
CREATE INDEX qc_reviews_review ON qc_reviews (review);
CREATE INDEX qc_copies_copy ON qc_copies (review, copy);
CREATE INDEX qc_annotations_time ON qc_annotations (project, updated_at, annotator, task);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('inbox_events',9);
INSERT INTO "sqlite_sequence" VALUES('qc_actions',2);
COMMIT;
