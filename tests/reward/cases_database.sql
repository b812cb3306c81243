-- The database that cases.jsonl runs on.
CREATE TABLE shop (shop_id INTEGER PRIMARY KEY, name TEXT, city TEXT, opened TEXT, area REAL);
CREATE TABLE sale (sale_id INTEGER PRIMARY KEY, shop_id INT REFERENCES shop(shop_id), item TEXT, price REAL, pieces INT, note TEXT);
INSERT INTO shop VALUES (1,'North','Oslo','2011-03-01',120.5),(2,'South','Oslo','2015-06-12',80.0),(3,'West','Bergen','2015-06-12',200.25),
    (4,'East','Paris','2019-11-30',95.0),(5,'Old Quay','Bergen','2003-01-09',NULL);
INSERT INTO sale VALUES (1,1,'tea',4.5,2,NULL),(2,1,'cake',6.0,1,'gift'),(3,2,'tea',4.5,3,NULL),(4,3,'soap',2.0,10,''),
    (5,3,'tea',4.4,1,'gift'),(6,4,'cake',6.1,2,NULL),(7,1,'tea',4.5,2,NULL),(8,3,'lamp',19.99,1,'O''Hara');
-- NULLs, ties in age, names that differ in case, values of every type in one column.
CREATE TABLE member (member_id INTEGER PRIMARY KEY, nick TEXT, age INT, score REAL, team TEXT, joined TEXT, code, parent INT);
INSERT INTO member VALUES (1,'amy',30,1.5,'red','2020-01-05',1,NULL),(2,'Amy',25,2.5,'red','2020-02-01','1',1),
    (3,'bob',25,NULL,'blue','2020-02-01',1.5,1),(4,'',41,0.1,'blue',NULL,x'41',2),
    (5,'None',30,0.2,'green','2021-07-09','A',2),(6,NULL,NULL,0.3,'red','2021-12-31',NULL,9);
CREATE TABLE "order line" ("line no" INTEGER PRIMARY KEY, "unit price" REAL, "select" TEXT, qty INT);
INSERT INTO "order line" VALUES (1,2.5,'a',1),(2,3.5,'b',2),(3,4.5,'c',3);
CREATE TABLE big_number (n INTEGER);
INSERT INTO big_number VALUES (9007199254740993),(2);
