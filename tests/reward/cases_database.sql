-- The database that cases.jsonl runs on.
CREATE TABLE shop (shop_id INTEGER PRIMARY KEY, name TEXT, city TEXT, opened TEXT, area REAL);
CREATE TABLE sale (sale_id INTEGER PRIMARY KEY, shop_id INT REFERENCES shop(shop_id), item TEXT, price REAL, pieces INT, note TEXT);
INSERT INTO shop VALUES (1,'North','Oslo','2011-03-01',120.5),(2,'South','Oslo','2015-06-12',80.0),(3,'West','Bergen','2015-06-12',200.25),
    (4,'East','Paris','2019-11-30',95.0),(5,'Old Quay','Bergen','2003-01-09',NULL);
INSERT INTO sale VALUES (1,1,'tea',4.5,2,NULL),(2,1,'cake',6.0,1,'gift'),(3,2,'tea',4.5,3,NULL),(4,3,'soap',2.0,10,''),
    (5,3,'tea',4.4,1,'gift'),(6,4,'cake',6.1,2,NULL),(7,1,'tea',4.5,2,NULL),(8,3,'lamp',19.99,1,'O''Hara');
