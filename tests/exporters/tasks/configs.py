"""Label configs of each kind of project, after the templates of Label Studio, for machines without it."""

CONFIGS = {
    "captions": '<View><Image name="image" value="$image"/><TextArea name="caption" toName="image" maxSubmissions="1"/>'
    "</View>",
    "choices": '<View><Text name="text" value="$text"/><Choices name="mood" toName="text"><Choice value="good"/>'
    '<Choice value="bad"/></Choices><Choices name="topics" toName="text" choice="multiple"><Choice value="a"/>'
    '<Choice value="b"/></Choices></View>',
    "ratings": '<View><Text name="text" value="$text"/><Rating name="stars" toName="text"/><Number name="count"'
    ' toName="text"/><DateTime name="when" toName="text"/></View>',
    "taxonomy": '<View><Text name="text" value="$text"/><Taxonomy name="kind" toName="text"><Choice value="A">'
    '<Choice value="B"/></Choice><Choice value="C"/></Taxonomy></View>',
    "spans": '<View><Text name="text" value="$text"/><Labels name="label" toName="text"><Label value="PER"/>'
    '<Label value="LOC"/></Labels><Choices name="sure" toName="text" perRegion="true"><Choice value="yes"/>'
    '<Choice value="no"/></Choices><TextArea name="note" toName="text" perRegion="true"/><Relations>'
    '<Relation value="of"/></Relations></View>',
    "html": '<View><HyperText name="page" value="$page"/><HyperTextLabels name="label" toName="page">'
    '<Label value="PER"/></HyperTextLabels></View>',
    "dialogue": '<View><Paragraphs name="talk" value="$talk" layout="dialogue"/><ParagraphLabels name="label"'
    ' toName="talk"><Label value="ask"/></ParagraphLabels></View>',
    "audio": '<View><Labels name="label" toName="audio"><Label value="speech"/></Labels><Audio name="audio"'
    ' value="$audio"/><TextArea name="transcript" toName="audio" perRegion="true"/></View>',
    "video": '<View><Video name="video" value="$video"/><VideoRectangle name="box" toName="video"/>'
    '<Labels name="label" toName="video"><Label value="car"/></Labels></View>',
    "timeline": '<View><Video name="video" value="$video"/><TimelineLabels name="label" toName="video">'
    '<Label value="a"/></TimelineLabels></View>',
    "time series": '<View><TimeSeries name="ts" valueType="url" value="$csv"/><TimeSeriesLabels name="label"'
    ' toName="ts"><Label value="run"/></TimeSeriesLabels></View>',
    "chat": '<View><Chat name="chat" value="$chat" toName="chat"/><Choices name="safe" toName="chat" perRegion="true">'
    '<Choice value="yes"/></Choices><Rating name="stars" toName="chat"/></View>',
    "ranking": '<View><Text name="prompt" value="$prompt"/><List name="answers" value="$items"/>'
    '<Ranker name="rank" toName="answers"/></View>',
    "buckets": '<View><Text name="prompt" value="$prompt"/><List name="answers" value="$items"/>'
    '<Ranker name="rank" toName="answers"><Bucket name="best"/><Bucket name="rest"/></Ranker></View>',
    "pairwise": '<View><Text name="prompt" value="$prompt"/><Pairwise name="pw" toName="one,two"/>'
    '<Text name="one" value="$one"/><Text name="two" value="$two"/></View>',
    "pages": '<View><Image name="pages" valueList="$pages"/><RectangleLabels name="label" toName="pages">'
    '<Label value="sign"/></RectangleLabels><Choices name="kind" toName="pages" perItem="true"><Choice value="x"/>'
    "</Choices></View>",
    "shapes": '<View><Image name="image" value="$image"/><Rectangle name="box" toName="image"/><Polygon name="polygon"'
    ' toName="image"/><Labels name="label" toName="image"><Label value="car"/></Labels><BrushLabels name="mask"'
    ' toName="image"><Label value="road"/></BrushLabels><TextArea name="plate" toName="image" perRegion="true"/>'
    "</View>",
}  # fmt: skip
